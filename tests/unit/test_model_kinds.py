"""Which models are taken for a base, by what they are trained for, by their layers, and by the files of a folder."""
import json
import shutil

import pytest
import torch
from finetune.trainers import families
from finetune.trainers.errors import UserError
from finetune.trainers.families.component_loading import load_unet
from finetune.trainers.families.recognition import fingerprint_of, recognize
from finetune.trainers.families.text.clip import load_clip
from finetune.trainers.families.unet_state_dict import weights_of
from safetensors.torch import load_file, save_file
from support import tiny

UNET = "model.diffusion_model."


def blocks(*depths: tuple[int, int]) -> dict:
    return {f"{UNET}input_blocks.{index}.1.transformer_blocks.{layer}.attn1.to_q.weight": torch.zeros(1)
            for index, depth in depths for layer in range(depth)}


SDXL = {UNET + "input_blocks.0.0.weight": torch.zeros(320, 4, 1, 1), UNET + "label_emb.0.0.weight": torch.zeros(1),
        "conditioner.embedders.1.model.ln_final.weight": torch.zeros(1), "first_stage_model.a": torch.zeros(1)}
SD1 = {UNET + "input_blocks.0.0.weight": torch.zeros(320, 4, 1, 1), "first_stage_model.a": torch.zeros(1),
       "cond_stage_model.transformer.text_model.a": torch.zeros(1)}
WHOLE = blocks((4, 2), (5, 2), (7, 10), (8, 10))


def found(tmp_path, tensors, metadata=None, **choices):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata)
    return recognize(str(path), "model", **choices)


@pytest.mark.parametrize("extra, metadata, words", [
    ({"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}, None, "EDM.*CosXL"),
    ({"edm_vpred.sigma_min": torch.tensor(0.002)}, None, "EDM"),
    ({"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, None, "EDM.*Playground"),
    ({UNET + "time_embed.cond_proj.weight": torch.zeros(4)}, None, "LCM"),
    ({}, {"modelspec.prediction_type": "edm"}, "predicts 'edm'"),
    ({}, {"modelspec.prediction_type": "flow"}, "predicts 'flow'"),
    ({}, {"modelspec.prediction_type": "sample"}, "predicts 'sample'"),
])
@pytest.mark.parametrize("prediction", ["auto", "v_prediction"])
def test_single_files_trained_for_something_else_are_refused(extra, metadata, words, prediction, tmp_path):
    with pytest.raises(UserError, match=f"'model' is a model of another kind: .*{words}.*Choose"):
        found(tmp_path, {**SDXL, **WHOLE, **extra}, metadata, prediction=prediction)


@pytest.mark.parametrize("tensors, words", [
    ({**SDXL, **blocks((4, 2), (5, 2), (7, 4), (8, 4))}, "is SSD-1B, cut down from SDXL"),
    ({**SDXL, **blocks((4, 1), (5, 1), (7, 2), (8, 2))}, "is Segmind Vega, cut down"),
    ({**SDXL, **blocks((3, 2), (5, 5))}, "is KOALA 700M, cut down"),
    ({**SDXL, **blocks((3, 2), (5, 6))}, "is KOALA 1B, cut down"),
    ({**SDXL, **blocks((4, 2), (5, 2), (7, 9), (8, 10))}, "is an SDXL with other layers"),
    ({**SD1, **blocks((1, 1), (3, 1), (5, 1))}, "is an SD 1.x with other layers"),
    ({**SD1, UNET + "label_emb.0.0.weight": torch.zeros(1)}, "reads more than text"),
    ({**SD1, UNET + "input_blocks.0.0.weight": torch.zeros(8, 8, 1, 1)}, "8 input channels"),
    ({**SD1, UNET + "input_blocks.0.0.weight": torch.zeros(8)}, "is no convolution"),
])
def test_single_files_with_other_layers_are_refused(tensors, words, tmp_path):
    with pytest.raises(UserError, match=words):
        found(tmp_path, tensors)


@pytest.mark.parametrize("extra, metadata, choices, prediction_type, zero", [
    ({}, None, {}, "epsilon", False), ({"v_pred": torch.zeros(0)}, None, {}, "v_prediction", False),
    ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, None, {}, "v_prediction", True),
    ({"ztsnr": torch.zeros(0)}, {"modelspec.prediction_type": "v"}, {}, "v_prediction", True),
    ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, None, {"prediction": "epsilon"}, "epsilon", False),
    ({"ztsnr": torch.zeros(0)}, None, {}, "epsilon", False),
    ({}, {"modelspec.prediction_type": " V_Prediction "}, {}, "v_prediction", False),
    ({}, {"modelspec.prediction_type": "Epsilon"}, {}, "epsilon", False),
])
def test_what_a_single_file_says_of_its_prediction(extra, metadata, choices, prediction_type, zero, tmp_path):
    base = found(tmp_path, {**SDXL, **WHOLE, **extra}, metadata, **choices)
    assert (base.family, base.prediction_type, base.zero_terminal_snr) == ("sdxl", prediction_type, zero)


@pytest.fixture
def folder(tiny_bases, tmp_path):
    """A copy of the tiny SDXL folder that a test may break."""
    return shutil.copytree(tiny_bases["sdxl"].path, tmp_path / "folder")


def change(folder, component, **fields):
    path = folder / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("component, fields, words", [
    ("scheduler", {"_class_name": "EDMEulerScheduler"}, "another kind: EDM"),
    ("scheduler", {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon"}, "another kind: EDM"),
    ("scheduler", {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "another kind: EDM"),
    ("scheduler", {"_class_name": "LCMScheduler"}, "distilled for few steps"),
    ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "another kind: FlowMatch"),
    ("scheduler", {"prediction_type": "sample"}, "predicts 'sample'"),
    ("vae", {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "Playground"),
    ("unet", {"time_cond_proj_dim": 256}, "LCM"), ("unet", {"in_channels": 8}, "8 input channels"),
    ("unet", {"mid_block_type": None}, "mid_block_type in unet/config.json.*KOALA"),
    ("unet", {"reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]}, "another kind .reverse_transf"),
    ("unet", {"class_embed_type": "projection"}, "unCLIP"), ("unet", {"down_block_types": ["DownBlock2D"]}, "down_block"),
])
def test_folders_of_another_kind_are_refused(component, fields, words, folder):
    change(folder, component, **fields)
    with pytest.raises(UserError, match=words):
        recognize(str(folder), "folder")


def test_a_folder_with_zero_terminal_snr(folder):
    change(folder, "scheduler", rescale_betas_zero_snr=True)
    assert not recognize(str(folder), "folder").zero_terminal_snr
    change(folder, "scheduler", prediction_type="v_prediction")
    base = recognize(str(folder), "folder")
    assert base.zero_terminal_snr and base.prediction_type == "v_prediction"


ODD = [None, [], {}, "", "x" * 10_000, -1, 0, 10**30, 1.5, True, [None], [[1]], [0], [10**9, 10**9], {"a": 1}, float("nan"),
       float("inf"), [1] * 1000]


@pytest.mark.parametrize("component, fields", [
    ("unet", ("in_channels", "block_out_channels", "down_block_types", "up_block_types", "layers_per_block",
              "cross_attention_dim", "attention_head_dim", "transformer_layers_per_block", "use_linear_projection",
              "addition_embed_type", "norm_num_groups")),
    ("vae", ("latent_channels", "block_out_channels", "scaling_factor", "shift_factor", "norm_num_groups")),
    ("text_encoder", ("hidden_size", "num_hidden_layers", "max_position_embeddings", "vocab_size", "hidden_act")),
    ("scheduler", ("_class_name", "prediction_type", "num_train_timesteps", "beta_start", "beta_schedule",
                   "rescale_betas_zero_snr")),
])
def test_configs_of_wrong_types_give_a_base_or_a_sentence(component, fields, folder, tiny_bases):
    """And a base that is recognized has loadable shapes, or its loader has a sentence."""
    original = (folder / component).parent / component
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    text = (original / name).read_text()
    for field in fields:
        for value in ODD:
            (original / name).write_text(json.dumps({**json.loads(text), field: value}))
            try:
                base = recognize(str(folder), "folder")
                families.get(base.family).latent_format(base)
                families.get(base.family).attention_widths(base)
                if component == "scheduler":
                    families.get(base.family).alphas_cumprod(base)
                    families.get(base.family).sampler(base)
            except UserError as problem:
                assert "folder" in str(problem)


@pytest.mark.parametrize("text", [
    "", "[]", "null", "3", '"x"', "{", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "\ufeff{}", "{}" + " " * 2_000_000,
])
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder_2", "scheduler"])
def test_configs_that_are_no_objects(text, component, folder):
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    (folder / component / name).write_text(text)
    with pytest.raises(UserError, match=f"'folder' .*{name}"):
        recognize(str(folder), "folder")


# ---- several versions of the weights beside each other ---------------------------------------------------------------

def write_version(folder, component, file, value):
    """A copy of a component's weights with every number `value`, under another name."""
    stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
    weights = {name: torch.full_like(tensor, value) for name, tensor in
               load_file(next((folder / component).glob(f"{stem}*.safetensors"))).items()}
    if "-of-" in file:
        save_file(weights, folder / component / file, {"format": "pt"})
        variant = ".fp16" if "fp16" in file else ""
        (folder / component / f"{stem}.safetensors.index{variant}.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": {name: file for name in weights}}))
    else:
        save_file(weights, folder / component / file, {"format": "pt"})


STEM = "diffusion_pytorch_model"
VERSIONS = {
    "plain before fp16": ("unet", {f"{STEM}.safetensors": 1.0, f"{STEM}.fp16.safetensors": 2.0}, 1.0),
    "only fp16": ("unet", {f"{STEM}.fp16.safetensors": 2.0}, 2.0),
    "only another variant": ("unet", {f"{STEM}.bf16.safetensors": 2.0}, 2.0),
    "fp16 before others": ("unet", {f"{STEM}.fp16.safetensors": 2.0, f"{STEM}.bf16.safetensors": 3.0}, 2.0),
    "shards before one file, for diffusers": (
        "unet", {f"{STEM}.safetensors": 1.0, f"{STEM}-00001-of-00001.safetensors": 2.0}, 2.0),
    "one file before shards, for text": (
        "text_encoder", {"model.safetensors": 1.0, "model-00001-of-00001.safetensors": 2.0}, 1.0),
    "text in shards": ("text_encoder", {"model-00001-of-00001.safetensors": 2.0}, 2.0),
    "text in fp16": ("text_encoder", {"model.fp16.safetensors": 2.0}, 2.0),
    "fp16 in shards": ("unet", {f"{STEM}-00001-of-00001.fp16.safetensors": 2.0}, 2.0),
    "beside .bin": ("unet", {f"{STEM}.safetensors": 1.0, f"{STEM}.bin": 2.0}, 1.0),
}


@pytest.mark.parametrize("component, versions, taken", VERSIONS.values(), ids=VERSIONS)
def test_one_version_of_the_weights_is_loaded_compared_and_fingerprinted(component, versions, taken, folder):
    stem = "model" if component.startswith("text") else STEM
    for file, value in versions.items():
        write_version(folder, component, file, value)
    if f"{stem}.safetensors" not in versions:
        (folder / component / f"{stem}.safetensors").unlink()
    base = recognize(str(folder), "folder")
    if component == "unet":
        loaded = load_unet(base, torch.float32).conv_in.weight
        compared = weights_of(folder).weight(UNET + "input_blocks.0.0.weight")
    else:
        loaded = load_clip(base, component, torch.float32).state_dict()
        loaded = next(tensor for name, tensor in loaded.items() if "fc1.weight" in name)
        prefix = "conditioner.embedders.0.transformer.text_model."
        compared = weights_of(folder).weight(prefix + "encoder.layers.0.mlp.fc1.weight")
    assert loaded.unique().tolist() == [taken] == compared.unique().tolist()
    for file, value in versions.items():
        before = fingerprint_of(folder)
        write_version(folder, component, file, value + 8)
        (folder / component / file).touch()
        assert fingerprint_of(folder) != before
        changed = recognize(str(folder), "folder").fingerprint != base.fingerprint
        assert changed == (value == taken), file
        base = recognize(str(folder), "folder")


def test_a_folder_with_bin_files_only_is_refused_when_it_is_chosen(folder):
    (folder / "unet" / f"{STEM}.safetensors").rename(folder / "unet" / f"{STEM}.bin")
    with pytest.raises(UserError, match="'folder' holds its unet as .bin only.*Download unet/diffusion_pytorch"):
        recognize(str(folder), "folder")
    (folder / "unet" / f"{STEM}.bin").unlink()
    with pytest.raises(UserError, match="'folder' holds no unet/diffusion_pytorch_model.safetensors"):
        recognize(str(folder), "folder")


@pytest.mark.parametrize("index, words", [
    ([], "no index of shards"), ({"weight_map": {"a": None}}, "no index of shards"), ({"weight_map": {}}, "no index"),
    ({"weight_map": {"a": "missing.safetensors"}}, "missing.safetensors is missing"),
    ({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}, "is missing"),
    ({"weight_map": {"a": "config.json"}}, "config.json is missing"),
])
def test_broken_indexes(index, words, folder):
    (folder / "unet" / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=words):
        recognize(str(folder), "folder")


def test_damaged_weights_of_a_folder_are_seen_when_it_is_chosen(folder):
    path = folder / "vae" / f"{STEM}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"'{STEM}.safetensors' is incomplete"):
        recognize(str(folder), "folder")


@pytest.mark.parametrize("component, name", [("unet", "conv_in.weight"), ("text_encoder", "fc1.weight")])
def test_values_that_are_not_numbers_are_named_when_a_base_is_loaded(component, name, folder):
    base = recognize(str(folder), "folder")
    path = next((folder / component).glob("*.safetensors"))
    weights = load_file(path)
    key = next(key for key in weights if key.endswith(name))
    weights[key].view(-1)[3] = float("inf")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds values that are not numbers in"):
        load_unet(base, torch.float32) if component == "unet" else load_clip(base, component, torch.float32)


def test_values_that_are_not_numbers_in_a_single_file(tiny_bases, tmp_path):
    path = tiny.make_single_file("sd1", tiny_bases["sd1"].path, tmp_path / "one.safetensors")
    weights = load_file(path)
    weights[UNET + "out.2.bias"][0] = float("nan")
    save_file(weights, path)
    base = recognize(str(path), "one", configs=tiny_bases["sd1"].path)
    with pytest.raises(UserError, match="out.2.bias holds values that are not numbers in 'one.safetensors'"):
        families.get("sd1").load_denoiser(base, torch.float32)


def test_scales_beside_the_weights_of_a_folder_are_refused(folder):
    """diffusers would leave them out."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "conv_in.scale_weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match="scales.*conv_in.scale_weight.*Choose the fp16 or bf16 version"):
        recognize(str(folder), "model")
