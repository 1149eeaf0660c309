"""Writes locales/en/nodeDefs.json: what people read on the nodes' inputs and outputs, whose ids are for programs.

    python scripts/make_labels.py

A label is the id in words, but for the exceptions below. The ids come from tests/host/schemas.json.
"""
from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS, LABELS = ROOT / "tests" / "host" / "schemas.json", ROOT / "locales" / "en" / "nodeDefs.json"
WORDS = {"lora": "LoRA", "loras": "LoRAs", "vae": "VAE", "clip": "CLIP", "ema": "EMA", "svd": "SVD", "snr": "SNR",
         "rslora": "rsLoRA", "lokr": "LoKr", "ckpt": "checkpoint", "tensorboard": "TensorBoard", "t5": "T5"}
"""Words with a spelling of their own."""
EXCEPTIONS = {
    "text_encoder_learning_rate": "text enc. rate", "embedding_learning_rate": "embedding rate",
    "block_learning_rates": "block rates", "gradient_checkpointing": "grad. checkpointing",
    "gradient_accumulation": "accumulation", "maximum_gradient_norm": "max. gradient norm",
    "min_snr_gamma": "min-SNR gamma", "lora_plus_ratio": "LoRA+ ratio", "clip_skip": "CLIP skip",
    "aspect_ratio_buckets": "buckets",
    "previews_and_checkpoints": "previews & checkpoints", "embedding_training_fraction": "train word for (fraction)",
    "beta1": "beta 1", "beta2": "beta 2", "huber_c": "Huber c", "huber_schedule": "Huber schedule", "loss": "loss type",
    "top_p": "top-p", "original": "original model file", "tuned": "tuned model file", "flow_shift": "flow shift",
}
"""Short words where the id's own would be cut off, and terms that the id cannot spell."""


def label(identifier: str) -> str:
    """`text_encoders` → "text encoders"."""
    if identifier in EXCEPTIONS:
        return EXCEPTIONS[identifier]
    return " ".join(WORDS.get(word, word) for word in re.sub(r"_(\d+)$", r" \1", identifier).split("_"))


def labels(schemas: dict) -> dict:
    """The file's content, as the frontend reads it: node → its name, inputs by id, outputs by number."""
    return {node: {
        "display_name": facts["display_name"],
        **({"inputs": {name: {"name": label(name)} for name in facts["inputs"]}} if facts["inputs"] else {}),
        "outputs": {str(number): {"name": label(name)} for number, name in enumerate(facts["outputs"])},
    } for node, facts in schemas.items()}


def text() -> str:
    schemas = json.loads(SCHEMAS.read_text(encoding="utf-8"))
    return json.dumps(labels(schemas), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    LABELS.parent.mkdir(parents=True, exist_ok=True)
    LABELS.write_text(text(), encoding="utf-8")
