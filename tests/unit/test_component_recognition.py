"""What a file holds, from its header: components with their prefixes, and how their weights are kept."""
import pytest
from finetune.trainers.errors import UserError
from finetune.trainers.families.component_recognition import components_of, storage_of
from finetune.trainers.families.model_parts import ModelSource
from finetune.trainers.families.separate_files import WantedPart, separate_components
from safetensors.torch import save_file
from torch import zeros


def clip(layers: int, width: int, start="text_model.") -> dict:
    return {f"{start}encoder.layers.{number}.mlp.fc1.weight": [4 * width, width] for number in range(layers)}


def open_clip(layers: int, width: int) -> dict:
    return {f"transformer.resblocks.{number}.mlp.c_fc.weight": [4 * width, width] for number in range(layers)}


def t5(width: int, words=32128, gated=True) -> dict:
    return {"shared.weight": [words, width], "encoder.block.0.layer.0.SelfAttention.k.weight": [width, width],
            f"encoder.block.0.layer.1.DenseReluDense.wi{'_1' * gated}.weight": [2 * width, width]}


NORM = "self_attn.q_norm.weight"


def language(width: int, *more: str, start="model.", packed=1) -> dict:
    return {f"{start}layers.0.self_attn.k_proj.weight": [1024, width // packed],
            f"{start}layers.0.post_attention_layernorm.weight": [width],
            **{f"{start}layers.0.{name}": [128] for name in more}}


def vae(channels: int, diffusers=False) -> dict:
    norm = "decoder.up_blocks.0.resnets.0.norm1.weight" if diffusers else "decoder.up.0.block.0.norm1.weight"
    return {"decoder.conv_in.weight": [512, channels, 3, 3], norm: [512]}


def unet(context: int, labels=False) -> dict:
    return {"input_blocks.0.0.weight": [320, 4, 3, 3], "middle_block.1.transformer_blocks.0.attn2.to_k.weight": [9, context],
            **({"label_emb.0.0.weight": [1280, 2816]} if labels else {})}


def header(shapes: dict, dtype="F16", prefix="") -> dict:
    return {prefix + name: {"dtype": dtype, "shape": shape} for name, shape in shapes.items()}


CLIP_L, CLIP_G, VISION = clip(12, 768), clip(32, 1280), clip(24, 1024, "vision_model.")
FILES = {
    "CLIP-L": (CLIP_L, [("clip_l", "", 768)]),
    "CLIP-L, old names": (clip(12, 768, ""), [("clip_l", "", 768)]),
    "CLIP-H": (clip(24, 1024), [("clip_h", "", 1024)]),
    "CLIP-H without its last layer": (clip(23, 1024), [("clip_h", "", 1024)]),
    "CLIP-G": (CLIP_G, [("clip_g", "", 1280)]),
    "CLIP-G by OpenCLIP": (open_clip(32, 1280), [("clip_g", "", 1280)]),
    "a CLIP with its vision tower": (CLIP_L | VISION, [("clip_l", "", 768)]),
    "T5": (t5(4096), [("t5", "", 4096)]),
    "multilingual T5": (t5(4096, 256384), [("other text encoder", "", 4096)]),
    "T5 1.0": (t5(1024, gated=False), [("other text encoder", "", 1024)]),
    "Qwen3 4B": (language(2560, NORM), [("qwen3", "", 2560)]),
    "Qwen3 4B in four bits": (language(2560, NORM, packed=2), [("qwen3", "", 2560)]),
    "Qwen3 in a checkpoint": (language(1024, NORM, start="text_encoders.qwen3_06b.transformer.model."), [
        ("qwen3", "text_encoders.qwen3_06b.transformer.", 1024)]),
    "Qwen2.5-VL": (language(3584, "self_attn.k_proj.bias") | {"visual.patch_embed.proj.weight": [1280, 3, 2, 14, 14]}, [
        ("qwen25_vl", "", 3584)]),
    "Qwen3-VL": (language(4096, NORM, start="model.language_model.") | {
        "model.visual.deepstack_merger_list.0.norm.weight": [4608]}, [("qwen3_vl", "", 4096)]),
    "Mistral": (language(5120), [("mistral", "", 5120)]),
    "a small Mistral": (language(64) | {"tekken_model": [999]}, [("mistral", "", 64)]),
    "Llama": (language(4096), [("other text encoder", "", 4096)]),
    "Gemma": (language(2560, NORM, "pre_feedforward_layernorm.weight"), [("other text encoder", "", 2560)]),
    "VAE": (vae(16), [("vae", "", 16)]),
    "SD 1.x": (unet(768), [("denoiser", "", 0)]),
    "nothing": ({"some.weight": [4, 4]}, []),
    "a LoRA": ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": [4, 768]}, []),
    "an odd shape": ({"decoder.conv_in.weight": [512]}, []),
}


@pytest.mark.parametrize("shapes, expected", FILES.values(), ids=FILES)
def test_components(shapes, expected):
    assert [(each.kind, each.prefix, each.width) for each in components_of(header(shapes))] == expected


def next_dit(width: int, modulation: int) -> dict:
    """Z-Image and Lumina 2, of which the second has an activation before its modulation."""
    return {"cap_embedder.1.weight": [width, 2560], "noise_refiner.0.attention.k_norm.weight": [width // 30],
            f"noise_refiner.0.adaLN_modulation.{modulation}.weight": [4 * width, 256],
            "layers.0.attention.qkv.weight": [3 * width, width]}


@pytest.mark.parametrize("shapes, family", [
    (unet(768), "sd1"), (unet(1024), "sd2"), (unet(2048, labels=True), "sdxl"), (next_dit(3840, 0), "z_image")])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_denoisers(shapes, family, prefix):
    found, = components_of(header(shapes, prefix=prefix))
    assert (found.kind, found.family, found.prefix) == ("denoiser", family, prefix)


def test_relatives_are_of_no_family():
    assert components_of(header(next_dit(2304, 1))) == ()


def test_everything_in_one_file():
    whole = (header(unet(2048, labels=True), prefix="model.diffusion_model.") | header(vae(4), "F32", "first_stage_model.")
             | header(CLIP_L, prefix="text_encoders.clip_l.transformer.")
             | header(CLIP_G, prefix="text_encoders.clip_g.transformer.")
             | header(t5(4096), "F8_E4M3", "text_encoders.t5xxl.transformer."))
    assert {each.prefix: each.title for each in components_of(whole)} == {
        "model.diffusion_model.": "denoiser (fp16)", "first_stage_model.": "VAE with 4 latent channels (fp32)",
        "text_encoders.clip_l.transformer.": "CLIP-L text encoder (fp16)",
        "text_encoders.clip_g.transformer.": "CLIP-G text encoder (fp16)",
        "text_encoders.t5xxl.transformer.": "T5-XXL text encoder (fp8)"}


def test_language_models_are_named_by_their_size():
    titles = ("Qwen3 4B", "Qwen3 in a checkpoint", "Qwen2.5-VL", "Qwen3-VL", "Mistral")
    assert {title: components_of(header(FILES[title][0]))[0].title.partition(" (")[0] for title in titles} == {
        "Qwen3 4B": "Qwen3 4B text encoder", "Qwen3 in a checkpoint": "Qwen3 0.6B text encoder",
        "Qwen2.5-VL": "Qwen2.5-VL 7B text encoder", "Qwen3-VL": "Qwen3-VL 8B text encoder",
        "Mistral": "Mistral Small 3 text encoder"}
    wanted = WantedPart("text_encoder", "qwen3", ("qwen_3_8b.safetensors",), width=4096)
    assert wanted.title == "Qwen3 8B text encoder" and not wanted.fits(components_of(header(FILES["Qwen3 4B"][0]))[0])


STORED = {
    "bf16": ("BF16", {}), "fp16": ("F16", {}), "fp32": ("F32", {}), "fp8": ("F8_E5M2", {}),
    "scaled fp8": ("F8_E4M3", {"a.scale_weight": "F32"}), "int8": ("I8", {"a.weight_scale": "F32"}),
    "mxfp8": ("F8_E4M3", {"a.weight_scale": "U8"}), "nvfp4": ("U8", {"a.weight_scale": "U8", "a.weight_scale_2": "F32"}),
}


@pytest.mark.parametrize("kind", STORED)
def test_how_weights_are_kept(kind):
    """A larger tensor in full precision, such as a T5's table of words, does not hide what the others are."""
    dtype, beside = STORED[kind]
    tensors = header({"a.weight": [64, 64]}, dtype) | {name: {"dtype": each, "shape": []} for name, each in beside.items()}
    assert storage_of(tensors) == kind
    words = header({"words.weight": [4096, 64]}, dtype if dtype in ("BF16", "F16", "F32") else "BF16")
    assert storage_of(tensors | words) == kind


WANTED = (WantedPart("text_encoder", "clip_l", ("clip_l.safetensors",)),
          WantedPart("text_encoder_2", "t5", ("t5xxl_fp16.safetensors", "t5xxl_fp8_e4m3fn.safetensors"), required=False),
          WantedPart("vae", "vae", ("ae.safetensors",), channels=16))


@pytest.fixture
def source(tmp_path):
    """Makes what somebody chose: a denoiser with files beside it, by name → shapes of their tensors."""
    def made(**files):
        for name, shapes in files.items():
            save_file({key: zeros(shape) for key, shape in shapes.items()}, tmp_path / f"{name}.safetensors")
        return ModelSource(tmp_path / "flow.safetensors", "flow",
                           others=tuple(tmp_path / f"{name}.safetensors" for name in files))
    return made


SMALL_CLIP, SMALL_VAE = clip(2, 4), {"decoder.conv_in.weight": [4, 16, 1, 1]}


def test_separate_files(source):
    small_vae = {f"first_stage_model.{name}": shape for name, shape in SMALL_VAE.items()}
    found = separate_components(source(text=SMALL_CLIP, vae=small_vae), "Flow", WANTED)
    assert {name: (each.path.rpartition("/")[2], each.prefix) for name, each in found.items()} == {
        "text_encoder": ("text.safetensors", ""), "vae": ("vae.safetensors", "first_stage_model.")}
    found = separate_components(source(whole=SMALL_CLIP | SMALL_VAE | t5(4)), "Flow", WANTED)
    assert list(found) == ["text_encoder", "text_encoder_2", "vae"]


@pytest.mark.parametrize("files, words", [
    ({"text": SMALL_CLIP}, "lacks its VAE with 16 latent channels.*models/vae .*ae.safetensors"),
    ({"vae": SMALL_VAE}, "lacks its CLIP-L text encoder.*models/text_encoders .*clip_l.safetensors"),
    ({"text": SMALL_CLIP, "other": {"decoder.conv_in.weight": [4, 4, 1, 1]}},
     "'other.safetensors' holds a VAE with 4 latent channels \\(fp32\\), and Flow takes .*VAE with 16"),
    ({"text": SMALL_CLIP, "other": {"some.weight": [4, 4]}}, "'other.safetensors' holds no part of a model"),
    ({"text": SMALL_CLIP, "other": SMALL_VAE | {"decoder.up_blocks.0.resnets.0.norm1.weight": [4]}}, "diffusers"),
])
def test_wrong_and_missing_files_are_named(source, files, words):
    with pytest.raises(UserError, match=words):
        separate_components(source(**files), "Flow", WANTED)
