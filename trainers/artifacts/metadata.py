"""Metadata in the header of a file, for LoRA managers, A1111 and ComfyUI. All values are strings.

Sources of the names: kohya's `train_network.py` (`ss_*`, `sshs_*`) and Stability's modelspec 1.0.1. Nothing here is a
path: files get shared.
"""
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from safetensors.torch import save
from torch import Tensor

from ..spec import DatasetImage, LoraSpec, ObjectiveSpec, RunSpec
from ..spec.blocks import BlockValues
from ..spec.file_tasks import ExtractionSpec, MergeSpec
from .adapters import FORMATS

KEPT = ("ss_base_model_version", "ss_v2", "ss_sd_model_name", "ss_resolution", "ss_clip_skip", "modelspec.architecture",
        "modelspec.implementation", "modelspec.prediction_type", "modelspec.resolution", "modelspec.sai_model_spec")
"""What tells readers what a file is for."""
PREDICTION = {"epsilon": "epsilon", "v_prediction": "v", "flow": "flow"}


def training_metadata(spec: RunSpec, family_metadata: Mapping[str, str], images: Sequence[DatasetImage], steps: int,
                      epochs: float, buckets: Mapping[tuple[int, int], int], finished: float) -> dict[str, str]:
    """What can be told about a run after `steps` steps. `images` are those that were trained; `buckets` counts them per
    (width, height); `finished` is a Unix time in seconds."""
    method, training, optimizer, objective = spec.method, spec.training, spec.optimizer, spec.objective
    text_rate = getattr(method, "text_encoder_learning_rate", 0.0)
    optimizers, assistant = {"adamw": "torch.optim.AdamW"}, spec.base.assistant
    entries = {
        **family_metadata,
        "ss_output_name": spec.name,
        "ss_sd_model_name": _file_name(spec.base.name),
        "finetune.assistant_lora": assistant and f"{_file_name(assistant.name)} at {assistant.strength:g}",
        "ss_learning_rate": optimizer.learning_rate,
        "ss_unet_lr": optimizer.learning_rate,
        "ss_text_encoder_lr": text_rate,
        "ss_optimizer": f"{optimizers.get(optimizer.name, optimizer.name)}(weight_decay={optimizer.weight_decay})",
        "ss_lr_scheduler": spec.schedule.name,
        "ss_lr_warmup_steps": spec.schedule.warmup_steps,
        "ss_max_grad_norm": optimizer.maximum_gradient_norm,
        "ss_gradient_accumulation_steps": training.accumulation,
        "ss_gradient_checkpointing": spec.memory.gradient_checkpointing,
        "ss_mixed_precision": {"fp32": "no"}.get(spec.memory.precision, spec.memory.precision),
        "ss_total_batch_size": training.batch_size * training.accumulation,
        "ss_batch_size_per_device": training.batch_size,
        "ss_seed": training.seed,
        "ss_steps": steps,
        "ss_max_train_steps": training.steps,
        "ss_epoch": round(epochs),
        "ss_min_snr_gamma": objective.min_snr_gamma or None,
        "ss_debiased_estimation": objective.debiased,
        "ss_noise_offset": objective.noise_offset or None,
        "ss_multires_noise_iterations": objective.multires_iterations or None,
        "ss_multires_noise_discount": objective.multires_discount if objective.multires_iterations else None,
        "ss_ip_noise_gamma": objective.input_perturbation or None,
        "ss_zero_terminal_snr": objective.zero_terminal_snr,
        "ss_loss_type": objective.loss,
        "ss_huber_c": objective.huber_c if objective.loss == "huber" else None,
        "ss_huber_schedule": objective.huber_schedule if objective.loss == "huber" else None,
        "ss_masked_loss": objective.masked,
        **(flow_entries(spec) if spec.base.prediction_type == "flow" else {}),
        "ss_caption_dropout_rate": training.caption_dropout,
        "ss_resolution": f"({training.resolution}, {training.resolution})",
        "ss_enable_bucket": training.buckets,
        "ss_bucket_info": json.dumps({"buckets": {
            str(number): {"resolution": list(size), "count": count}
            for number, (size, count) in enumerate(sorted(buckets.items()))
        }}),
        "ss_num_train_images": sum(image.repeats for image in images),
        "ss_num_reg_images": len(spec.prior.dataset.images) if spec.prior else 0,
        "ss_prior_loss_weight": spec.prior.weight if spec.prior else None,
        "ss_clip_skip": training.clip_skip or None,
        "ss_num_epochs": max(1, round(epochs)),
        "ss_tag_frequency": json.dumps({spec.dataset.name: tag_frequency(images)}, ensure_ascii=False),
        "ss_datasets": json.dumps([{"subsets": [{
            "class_tokens": spec.dataset.trigger or None, "img_count": len(images),
            "num_repeats": images[0].repeats, "image_dir": spec.dataset.name,
        }]}], ensure_ascii=False),
        "ss_training_finished_at": f"{finished:.6f}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": spec.name,
        "modelspec.resolution": f"{training.resolution}x{training.resolution}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(finished)),
        "modelspec.prediction_type": PREDICTION[spec.base.prediction_type],
        "modelspec.timestep_range": timestep_range(objective),
        "modelspec.trigger_phrase": spec.dataset.trigger or None,
    }
    return {name: str(value) for name, value in entries.items() if value is not None}


def flow_entries(spec: RunSpec) -> dict[str, str | float | None]:
    """What kohya's scripts for SD3 and FLUX.1 say besides, in its words."""
    objective = spec.objective
    return {
        "ss_weighting_scheme": objective.flow_weighting, "ss_timestep_sampling": objective.distribution,
        "ss_sigmoid_scale": objective.distribution_spread, "ss_discrete_flow_shift": objective.flow_shift or None,
        "ss_guidance_scale": spec.training.guidance, "ss_t5xxl_max_token_length": spec.training.text_length or None,
        "ss_model_prediction_type": "raw",
    }


def lora_metadata(method: LoraSpec, family_metadata: Mapping[str, str]) -> dict[str, str]:
    """What readers of LoRA files want to know about the adapters.

    Only plain LoRA, with convolutions or without, is kohya's `networks.lora`; the others are LyCORIS', whose arguments
    (`lycoris/wrapper.py`) say the kind.
    """
    # Readers divide alpha by the rank to get the scale.
    alpha = method.alpha * method.rank**0.5 if method.rank_stabilized else method.alpha
    kind = FORMATS[method.adapter]
    convolutions = method.convolution_rank or method.convolution_alpha
    arguments = {
        "targets": method.pattern if method.targets == "pattern" else method.targets, **kind.arguments(method),
        "conv_dim": (method.convolution_rank or method.rank) if convolutions else None,
        "conv_alpha": method.convolution_alpha or None,
        "loraplus_lr_ratio": method.plus_ratio if method.plus_ratio != 1 else None,
        "rank_stabilized": method.rank_stabilized or None,
        "block_ranks": _typed(method.block_ranks), "block_rates": _typed(method.block_rates),
    }
    entries = {
        "modelspec.architecture": family_metadata["modelspec.architecture"] + "/lora",
        "ss_network_module": kind.network,
        "ss_network_dim": method.rank, "ss_network_alpha": alpha, "ss_network_dropout": method.dropout,
        "ss_network_args": json.dumps({name: str(value) for name, value in arguments.items() if value is not None}),
    }
    return {name: str(value) for name, value in entries.items()}


def extraction_metadata(spec: ExtractionSpec, family_metadata: Mapping[str, str], tuned: str, base: str,
                        ranks: Sequence[int]) -> dict[str, str]:
    """Of an extracted LoRA. `tuned` and `base` are names without folders; layers may differ in
    rank, and readers are told the largest."""
    rule = spec.rule if spec.rule in ("fixed", "knee") else f"{spec.rule} {spec.threshold:g}"
    entries = {
        **as_lora(family_metadata),
        "ss_network_module": "networks.lora", "ss_network_dim": max(ranks), "ss_network_alpha": max(ranks),
        "ss_network_args": json.dumps({"conv_dim": str(spec.convolution_rank or spec.rank)} if spec.convolutions else {}),
        "ss_output_name": spec.name, "ss_sd_model_name": _file_name(base), "ss_training_comment":
            f"extracted from {_file_name(tuned)} minus {_file_name(base)}; rank by rule {rule}, "
            f"{min(ranks)} to {max(ranks)}",
        "modelspec.sai_model_spec": "1.0.1", "modelspec.title": spec.name,
        "modelspec.merged_from": f"{_file_name(tuned)}, {_file_name(base)}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return {name: str(value) for name, value in entries.items()}


def merge_metadata(spec: MergeSpec, sources: Sequence[tuple[str, Mapping[str, str]]], ranks: Sequence[int],
                   family_metadata: Mapping[str, str]) -> dict[str, str]:
    """Of a merged or resized LoRA: what the files say about their base where they agree, else what is known of its family,
    and where it came from. `sources` are (file's name, its metadata)."""
    first = sources[0][1]
    shared = {name: first[name] for name in KEPT if name in first and all(
        metadata.get(name) == first[name] for _, metadata in sources)}
    phrases = dict.fromkeys(phrase for _, metadata in sources if (phrase := metadata.get("modelspec.trigger_phrase")))
    entries = {
        **as_lora(family_metadata), **shared,
        "ss_network_module": "networks.lora", "ss_network_dim": max(ranks), "ss_network_alpha": max(ranks),
        "ss_output_name": spec.name, "modelspec.title": spec.name,
        "modelspec.merged_from": ", ".join(_file_name(name) for name, _ in sources),
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ss_training_comment": f"made of {', '.join(_file_name(name) for name, _ in sources)}; rule {spec.rule}",
        **({"modelspec.trigger_phrase": ", ".join(phrases)} if phrases else {}),
    }
    return {name: str(value) for name, value in entries.items()}


def converted_metadata(metadata: Mapping[str, str], maker: str, name: str, rank: int, plain: bool) -> dict[str, str]:
    """Of a LoRA under the names of another `maker`. What peft says of scales is in the tensors then; kohya's files say what
    network they hold, here of at most `rank`, `plain` LoRA or LyCORIS', and diffusers' files have no such network."""
    kept = {key: value for key, value in metadata.items() if key not in ("lora_adapter_metadata", "adapter_config")}
    network = ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")
    if maker == "diffusers":
        return {key: value for key, value in kept.items() if key not in network}
    if maker == "kohya" and "ss_network_module" not in kept:
        own = ("networks.lora" if plain else "lycoris.kohya", str(rank), str(rank), "{}")
        return {**kept, **dict(zip(network, own)), "ss_output_name": kept.get("ss_output_name", name)}
    return kept


def as_lora(family_metadata: Mapping[str, str]) -> dict[str, str]:
    """A family's metadata as that of its LoRAs; empty for a family that is not known here."""
    if not family_metadata:
        return {}
    return {**family_metadata, "modelspec.architecture": family_metadata["modelspec.architecture"] + "/lora"}


def _file_name(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def timestep_range(objective: ObjectiveSpec) -> str | None:
    """Modelspec's "first,last" in thousandths of the noise schedule; None for all of it."""
    if (objective.minimum_timestep, objective.maximum_timestep) == (0, 1):
        return None
    return f"{round(1000 * objective.minimum_timestep)},{round(1000 * objective.maximum_timestep)}"


def _typed(values: BlockValues) -> str | None:
    return ", ".join(f"{block}={number:g}" for block, number in values) or None


def embedding_metadata(metadata: Mapping[str, str], family_metadata: Mapping[str, str], token: str,
                       vectors: int) -> dict[str, str]:
    """A run's metadata as that of its embedding. `token` is the word of the captions."""
    kept = {name: value for name, value in metadata.items() if name not in ("ss_unet_lr", "ss_text_encoder_lr")}
    architecture = family_metadata["modelspec.architecture"] + "/textual-inversion"
    return {**kept, "modelspec.architecture": architecture, "modelspec.trigger_phrase": token,
            "ss_num_vectors_per_token": str(vectors)}


def tag_frequency(images: Sequence[DatasetImage]) -> dict[str, int]:
    """How often each comma-separated tag occurs in the captions, most frequent first."""
    counts: Counter[str] = Counter()
    for image in images:
        counts.update(tag.strip() for tag in image.caption.split(",") if tag.strip())
    return dict(counts.most_common())


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with hashes over the tensor data alone, so that editing metadata does not change them."""
    serialized = save(dict(tensors))
    start = 8 + int.from_bytes(serialized[:8], "little")
    digest = hashlib.sha256(memoryview(serialized)[start:]).hexdigest()
    # kohya's legacy hash (the Additional Networks extension's): 64 KiB from 1 MiB on, eight digits.
    legacy = hashlib.sha256(memoryview(serialized)[0x100000:0x110000]).hexdigest()[:8]
    return {**metadata, "sshs_model_hash": digest, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{digest}"}
