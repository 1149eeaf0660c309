"""Do language models say in ComfyUI what they say here? Run by test_language_models.py in a process of its own.

    python tests/host/language_effects.py <ComfyUI> <folder for files>

Random models of few numbers in ComfyUI's own classes, with its own tokenizers and templates, as many as it has. Errors are
relative to what ComfyUI computes.
"""
import base64
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

load_pack()
become_host(Path(sys.argv[1]))

import comfy.sd1_clip  # noqa: E402
from finetune.trainers.families.protocol import TextEncoders  # noqa: E402
from finetune.trainers.families.text import language_model, taps  # noqa: E402
from finetune.trainers.families.text.language_model import LanguageModel  # noqa: E402
from finetune.trainers.families.text.t5 import T5  # noqa: E402
from finetune.trainers.spec import BaseModelSpec, ComponentSpec  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

CAPTIONS = {
    "short": "a cat, sitting", "empty": "", "other scripts": "Größe: 図書館の猫, кошка 🐈",
    "lines": "Two 123 lines\n\n  isn't it ",
    "long": "one word after the other " * 120}
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


class NoVision(torch.nn.Module):
    """In place of the part that sees images, which takes gigabytes."""

    def __init__(self, *args, **options):
        super().__init__()


def host(module: str):
    try:
        found = importlib.import_module(f"comfy.text_encoders.{module}")
    except ImportError:
        return None
    if hasattr(found, "Qwen3VLVisionModel"):
        found.Qwen3VLVisionModel = NoVision
    return found


import comfy.text_encoders.qwen_vl  # noqa: E402

comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer = NoVision
flux, z_image, qwen_image, qwen3vl, krea2, anima = map(host, ("flux", "z_image", "qwen_image", "qwen3vl", "krea2", "anima"))


def tekken() -> torch.Tensor:
    """A vocabulary of bytes and some pieces of words, as Mistral's files have it."""
    pieces = [bytes([number]) for number in range(256)]
    pieces += [b"th", b"the", b" w", b"or", b" wor", b"one", b" t", b"\xc3\xb6", b"ca"]
    words = [{"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
             for rank, piece in enumerate(pieces)]
    marks = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
             "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
             "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    content = {"config": {"default_vocab_size": 20 + len(pieces), "default_num_special_tokens": 20}, "vocab": words,
               "special_tokens": [{"rank": rank, "token_str": mark, "is_control": True} for rank, mark in enumerate(marks)]}
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def filled(module: torch.nn.Module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * 2 / parameter.shape[-1] ** 0.5)


def written(module: torch.nn.Module, path: Path, extra: dict) -> BaseModelSpec:
    tensors = {name: tensor.contiguous() for name, tensor in module.transformer.state_dict().items()}
    save_file(tensors | extra, path)
    return BaseModelSpec(path=str(path), name=path.stem, family="sd3", layout="separate_files", prediction_type="flow",
                         components=(ComponentSpec(name="text_encoder", path=str(path), prefix=""),), fingerprint="x")


def compared(name: str, encoder, tokenizer, kind: LanguageModel, folder: Path, extra=None, **options) -> dict:
    """For each caption: tokens and relative distance of states; and the distance with a changed template."""
    inner = next(each for each in encoder.children() if isinstance(each, comfy.sd1_clip.SDClipModel))
    filled(inner.transformer)
    base = written(inner, folder / f"{name}.safetensors", extra or {})
    text = TextEncoders({"te": kind.load_tokenizer(base, "text_encoder")}, {
        "te": kind.load(base, "text_encoder", torch.float32)})
    found = {}
    for title, caption in CAPTIONS.items():
        with torch.no_grad():
            said = encoder.encode_token_weights(tokenizer.tokenize_with_weights(caption or kind.tap.empty, **options))
            theirs = said[0]
            ours = kind.encode(text, "te", [caption])
            hidden = ours["hidden"].flatten(2)
            if kind.tap.pads_with_zeros:
                theirs = F.pad(theirs, (0, 0, max(512 - theirs.shape[1], 0), 0))
            if name == "qwen_image_21":
                theirs = theirs[:, 14:]
            other = replace(kind, tap=replace(kind.tap, after=f"{kind.tap.after} ")).encode(text, "te", [caption])["hidden"]
        seen = theirs.abs().sum(-1) > 0
        found[title] = {
            "tokens": [hidden.shape[1], theirs.shape[1]], "masks": len(ours.masks), "distance": distance(hidden, theirs),
            "cosine": float(F.cosine_similarity(hidden[seen], theirs[seen], dim=-1).min())
            if hidden.shape == theirs.shape else -1, "broken": distance(other.flatten(2), theirs)}
    return found


def chroma(folder: Path) -> dict:
    """T5 without padding in the host. Here one token of padding comes behind, which those of the caption do not see."""
    from comfy.text_encoders import pixart_t5

    size = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 2, "d_kv": 16}
    encoder = pixart_t5.pixart_te()(device="cpu", dtype=torch.float32, model_options={"t5xxl_model_config": size})
    filled(encoder.t5xxl.transformer)
    base = written(encoder.t5xxl, folder / "t5.safetensors", {})
    config = folder / "configs" / "text_encoder" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({**size, "vocab_size": 32128, "feed_forward_proj": "gated-gelu"}), encoding="utf-8")
    base, kind = base.model_copy(update={"configs": str(folder / "configs")}), T5(1, 512, masked=True)
    text = TextEncoders({"te": kind.load_tokenizer(base, "text_encoder")}, {
        "te": kind.load(base, "text_encoder", torch.float32)})
    found = {}
    for title, caption in CAPTIONS.items():
        with torch.no_grad():
            theirs = encoder.encode_token_weights(pixart_t5.PixArtTokenizer().tokenize_with_weights(caption))[0]
            ours = kind.encode(text, "te", [caption])
        found[title] = {"tokens": [ours["hidden"].shape[1] - 1, theirs.shape[1]], "masks": len(ours.masks),
                        "distance": distance(ours["hidden"][:, :-1], theirs)}
    return found


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-6))


def main():
    folder = Path(sys.argv[2])
    results = {"chroma": chroma(folder)}

    def compare(name: str, make, tokenizer, kind: LanguageModel, key: str, layers: int, extra=None, **options):
        size = {**SIZE, "num_hidden_layers": layers}
        encoder = make(device="cpu", dtype=torch.float32, model_options={f"{key}_model_config": size})
        results[name] = compared(name, encoder, tokenizer(tokenizer_data=extra or {}), kind, folder, extra, **options)

    if z_image:
        compare("z_image", z_image.ZImageTEModel, z_image.ZImageTokenizer, LanguageModel(language_model.QWEN3, taps.Z_IMAGE),
                "qwen3_4b", 4)
    if qwen_image:
        compare("qwen_image", qwen_image.QwenImageTEModel, qwen_image.QwenImageTokenizer,
                LanguageModel(language_model.QWEN25_VL, taps.QWEN_IMAGE), "qwen25_7b", 3)
    if hasattr(flux, "klein_te"):
        compare("flux2_klein", flux.klein_te(), flux.KleinTokenizer, LanguageModel(language_model.QWEN3, taps.FLUX2_KLEIN),
                "qwen3_4b", 28)
        compare("flux2_dev", flux.flux2_te(pruned=True), flux.Flux2Tokenizer,
                LanguageModel(language_model.MISTRAL, taps.FLUX2_DEV), "mistral3_24b", 30, {"tekken_model": tekken()})
    if krea2:
        compare("krea2", krea2.Krea2TEModel, krea2.Krea2Tokenizer, LanguageModel(language_model.QWEN3_VL, taps.KREA2),
                "qwen3vl_4b", 36)
    if qwen3vl:
        template = f"{taps.QWEN_IMAGE_21.before}{{}}{taps.QWEN_IMAGE_21.after}"
        compare("qwen_image_21", qwen3vl.te(), qwen3vl.tokenizer(),
                LanguageModel(language_model.QWEN3_VL, taps.QWEN_IMAGE_21), "qwen3vl_8b", 3,
                llama_template=template, thinking=True)
    if anima:
        compare("anima", anima.AnimaTEModel, anima.AnimaTokenizer, LanguageModel(language_model.QWEN3, taps.ANIMA),
                "qwen3_06b", 3)
    (Path(sys.argv[2]) / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
