"""One prompt that puts the native objects of a loader into many nodes of the core."""

SUPPLIES = {
    "positive": ("CLIPTextEncode", {"clip": ["base", 1], "text": "noto emoji of a lion"}),
    "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    "image": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 8421504}),
    "mask": ("SolidMask", {"value": 1.0, "width": 64, "height": 64}),
    "noise": ("RandomNoise", {"noise_seed": 1}),
    "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
    "sigmas": ("BasicScheduler", {"model": ["base", 0], "scheduler": "normal", "steps": 1, "denoise": 1.0}),
    "guider": ("BasicGuider", {"model": ["base", 0], "conditioning": ["positive", 0]}),
    "pair": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 2}),
    "latents": ("RebatchLatents", {"latents": ["pair", 0], "batch_size": 1}),
    "difference": ("ModelMergeSubtract", {"model1": ["base", 0], "model2": ["base", 0], "multiplier": 1.0}),
}
LINKS = {"MODEL": ["base", 0], "CLIP": ["base", 1], "VAE": ["base", 2], "CONDITIONING": ["positive", 0],
         "LATENT": ["latent", 0], "IMAGE": ["image", 0], "MASK": ["mask", 0], "NOISE": ["noise", 0],
         "SAMPLER": ["sampler", 0], "SIGMAS": ["sigmas", 0], "GUIDER": ["guider", 0]}
NODES = {
    **{name: {} for name in (
        "FreeU", "FreeU_V2", "PatchModelAddDownscale", "ModelSamplingDiscrete", "ModelSamplingContinuousEDM", "RescaleCFG",
        "HyperTile", "PerturbedAttentionGuidance", "TomePatchModel", "DifferentialDiffusion", "UNetSelfAttentionMultiply",
        "UNetCrossAttentionMultiply", "ModelMergeSimple", "ModelMergeBlocks", "ModelMergeAdd", "ModelMergeSD1",
        "ModelComputeDtype", "CLIPSetLastLayer", "CLIPMergeSimple", "CLIPMergeAdd", "CLIPAttentionMultiply", "KSampler",
        "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "CFGGuider", "VAEEncode", "VAEEncodeTiled",
        "VAEDecode", "VAEDecodeTiled", "VAEEncodeForInpaint", "InpaintModelConditioning", "ModelSave", "CLIPSave",
        "VAESave", "CheckpointSave",
    )},
    "LoraSave": {"filename_prefix": "loras/native", "rank": 2, "model_diff": ["difference", 0]},
    "TrainLoraNode": {"latents": ["latents", 0], "steps": 1, "rank": 1, "training_dtype": "fp32",
                      "lora_dtype": "fp32"},
}
"""Node → inputs other than the defaults."""


def prompt_for(base: dict, object_info: dict) -> dict:
    """The nodes behind a loader `base`, with default widgets, each with something behind it that uses what it gives."""
    prompt = {"base": base, **{name: {"class_type": kind, "inputs": values} for name, (kind, values) in SUPPLIES.items()}}
    for node, given in NODES.items():
        definition = object_info[node]
        inputs = {name: value_of(kind, rest[0] if rest else {})
                  for name, (kind, *rest) in (definition["input"].get("required") or {}).items()}
        prompt[node] = {"class_type": node, "inputs": {**inputs, **given}}
        prompt.update(used(node, definition["output"][0] if definition["output"] else ""))
    return prompt


def value_of(kind, options: dict):
    """A link for what crosses sockets, the default for a widget."""
    if isinstance(kind, str) and kind in LINKS:
        return LINKS[kind]
    choices = kind if isinstance(kind, list) else options.get("options") or []
    return options.get("default", choices[0] if choices else {"STRING": "", "BOOLEAN": False}.get(kind, 0))


def used(node: str, kind: str) -> dict:
    """An image made with a node's first output where that is a part of one; else its value as text."""
    links, own = {**LINKS, kind: [node, 0]}, {}
    if kind == "CLIP":
        own[f"{node}/words"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [node, 0], "text": "a lion"}}
        links["CONDITIONING"] = [f"{node}/words", 0]
    if kind in ("MODEL", "CLIP", "CONDITIONING"):
        own[f"{node}/sample"] = {"class_type": "KSampler", "inputs": {
            "model": links["MODEL"], "positive": links["CONDITIONING"], "negative": ["positive", 0],
            "latent_image": ["latent", 0], "seed": 1, "steps": 1, "cfg": 2.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 1.0}}
        links["LATENT"] = [f"{node}/sample", 0]
    if kind in ("MODEL", "CLIP", "CONDITIONING", "LATENT"):
        own[f"{node}/decode"] = {"class_type": "VAEDecode", "inputs": {"samples": links["LATENT"], "vae": ["base", 2]}}
        return {**own, f"{node}/show": preview([f"{node}/decode", 0])}
    if kind == "IMAGE":
        return {f"{node}/show": preview([node, 0])}
    return {f"{node}/show": {"class_type": "PreviewAny", "inputs": {"source": [node, 0]}}} if kind else {}


def preview(images: list) -> dict:
    return {"class_type": "PreviewImage", "inputs": {"images": images}}
