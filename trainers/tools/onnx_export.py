"""A base's denoiser, with LoRAs worked in, as an ONNX file, proven by onnxruntime before anybody is told that it is there.

Inputs and output have the names that diffusers' and optimum's ONNX pipelines use: `sample` [batch, channels, height, width],
`timestep` int64 [batch], `encoder_hidden_states` [batch, tokens, width], for SDXL also `text_embeds` [batch, width] and
`time_ids` [batch, 6]; `out_sample` like `sample`. Batch, height, width and tokens may vary.
"""
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import families
from ..data.images.buckets import Crop
from ..errors import Cancelled, UserError
from ..events import Emit, PhaseEvent
from ..families.component_configs import config_folder
from ..families.conditioning import Conditioning
from ..families.latent_diffusion import LatentDiffusion
from ..families.protocol import Family
from ..families.recognition import recognize
from ..files import UNFINISHED, ensure_space
from ..optional_packages import require_modules
from ..reports import OnnxReport, SavedFile
from ..spec import BaseModelSpec
from ..spec.file_tasks import BakeSpec, OnnxSpec
from .baking import bake
from .file_tasks import StopRequested

OPSET = 17
CONDITIONING = {"hidden": "encoder_hidden_states", "pooled": "text_embeds", "sizes": "time_ids"}
"""Our names of conditioning → those of other programs."""
OURS = {theirs: ours for ours, theirs in CONDITIONING.items()}
AXES = {"sample": {0: "batch", 2: "height", 3: "width"}, "timestep": {0: "batch"}, "text_embeds": {0: "batch"},
        "encoder_hidden_states": {0: "batch", 1: "tokens"}, "time_ids": {0: "batch"},
        "out_sample": {0: "batch", 2: "height", 3: "width"}}
ONE_FILE = 1_900_000_000
"""Bytes. An ONNX file is a protocol buffer, which ends at 2 GiB; the weights of larger models lie in a second file."""
TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}
"""Largest difference between onnxruntime and torch that is let through, as a fraction of the largest output."""


class Denoiser(nn.Module):
    """One denoising call with tensors for arguments, as the exporter traces it."""

    def __init__(self, family: Family, denoiser: nn.Module, conditioning: Sequence[str]):
        super().__init__()
        self.family, self.denoiser, self.conditioning = family, denoiser, tuple(conditioning)

    def forward(self, sample: Tensor, timestep: Tensor, *rest: Tensor) -> Tensor:
        return self.family.predict(self.denoiser, sample, timestep, Conditioning(dict(zip(self.conditioning, rest))))


def export(spec: OnnxSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> OnnxReport:
    """Write `<name>.onnx`, and beside it `<name>.onnx.data` for what does not fit into one file.

    Raises UserError when a package is missing, or when onnxruntime does not compute what torch computes.
    """
    require_modules("Exporting to ONNX", onnx="onnx", onnxruntime="onnxruntime")

    def phase(text: str, stage: str):
        if stop_requested():
            raise Cancelled
        emit(PhaseEvent(text=text, stage=stage))

    phase("loading the model", "loading")
    base = recognize(spec.base, Path(spec.base).stem, configs=spec.configs)
    family, dtype = families.get(base.family), {"fp32": torch.float32, "fp16": torch.float16}[spec.file_precision]
    if not isinstance(family, LatentDiffusion):
        raise UserError(f"{base.name!r} is a {family.title} model, and only UNets (SD 1.x, SD 2.x and SDXL) are exported to "
                        "ONNX. Bake LoRAs makes a checkpoint of it with its LoRAs.")
    conditioning = family.encode_captions(family.load_text(base, torch.float32), [""])
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
        baked, source = None, base
        if spec.loras:
            baked = bake(BakeSpec(name="baked", base=spec.base, loras=spec.loras, file_precision="fp32",
                                  folders=spec.folders), Path(temporary), emit, stop_requested)
            configs = str(config_folder(base)) if base.layout == "diffusers" else base.configs
            source = recognize(str(Path(temporary) / "baked.safetensors"), "baked", base.prediction_type, configs)
        denoiser = family.load_denoiser(source, dtype).eval().requires_grad_(False)
        ensure_space(folder, 2 * sum(parameter.nbytes for parameter in denoiser.parameters()))
        examples = [example(family, base, conditioning, dtype, *shape) for shape in ((2, 8, 8, 1), (1, 16, 8, 2))]
        model = Denoiser(family, denoiser, [OURS.get(name, name) for name in [*examples[0]][2:]])
        phase("computing what the file must compute", "computing")
        with torch.no_grad():
            wanted = [model(*each.values()) for each in examples]
        phase("exporting", "exporting")
        traced = Path(temporary) / "traced.onnx"
        trace(model, examples[0], traced)
        del model, denoiser
        phase("writing the file", "writing")
        files = save(traced, folder / f"{spec.name}.onnx", {
            "title": spec.name, "base": base.name, "loras": ", ".join(Path(lora.path).stem for lora in spec.loras)})
    try:
        phase("proving the file with onnxruntime", "proving")
        error = max(difference(files[0], inputs, output) for inputs, output in zip(examples, wanted))
        if not error <= TOLERANCE[spec.file_precision]:
            advice = "Export in fp32" if spec.file_precision == "fp16" else "Please report this"
            raise UserError(f"onnxruntime's result is off by {error:.2%} of the largest value, so the file would not give "
                            f"what the base gives, and is not kept. {advice}.")
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    return OnnxReport(
        files=tuple(SavedFile.at("onnx", file) for file in files), inputs=tuple(examples[0]), error=error,
        layers=baked.layers if baked else 0, loras=tuple(Path(lora.path).stem for lora in spec.loras), base=base.name,
        precision=spec.file_precision, notes=baked.notes if baked else ())


def example(family: Family, base: BaseModelSpec, conditioning: Conditioning, dtype: torch.dtype, batch: int, height: int,
            width: int, texts: int) -> dict[str, Tensor]:
    """Random inputs by name, for latents of `height` × `width` and prompts of `texts` times the usual length."""
    generator, latent_format = torch.Generator().manual_seed(batch), family.latent_format(base)
    inputs = {"sample": torch.randn((batch, latent_format.channels, height, width), generator=generator).to(dtype),
              "timestep": torch.randint(0, 1000, (batch,), generator=generator)}
    for name, tensor in conditioning.tensors.items():
        tokens = (tensor.shape[1] * texts,) if tensor.ndim == 3 else ()
        shape = (batch, *tokens, tensor.shape[-1])
        inputs[CONDITIONING.get(name, name)] = torch.randn(shape, generator=generator).to(dtype)
    crop = Crop.whole(width * latent_format.downscale, height * latent_format.downscale)
    for name, tensor in family.crop_conditioning([crop] * batch).tensors.items():
        inputs[CONDITIONING.get(name, name)] = tensor.to(dtype)
    return inputs


def trace(model: Denoiser, inputs: dict[str, Tensor], path: Path):
    # torch's exporter by tracing: its successor (dynamo) fixes sizes of attention that depend on the image's.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, tuple(inputs.values()), str(path), dynamo=False, opset_version=OPSET, input_names=list(inputs),
            output_names=["out_sample"], dynamic_axes={name: AXES[name] for name in (*inputs, "out_sample")})


def save(traced: Path, path: Path, metadata: dict[str, str]) -> list[Path]:
    """Save an ONNX model, whose weights may lie in many files beside it, as one file or as two."""
    import onnx

    model = onnx.load(str(traced))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    size = sum(file.stat().st_size for file in traced.parent.iterdir() if file.suffix != ".safetensors")
    data = path.with_name(f"{path.name}.data")
    large = size > ONE_FILE
    onnx.save_model(model, str(path), save_as_external_data=large, all_tensors_to_one_file=True, location=data.name)
    onnx.checker.check_model(str(path))
    return [path, data] if large else [path]


def difference(file: Path, inputs: dict[str, Tensor], wanted: Tensor) -> float:
    """Largest difference of onnxruntime's output from `wanted`, as a fraction of the largest value; NaN is infinite."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    output = torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])
    error = ((output.float() - wanted.float()).abs().max() / wanted.float().abs().max()).item()
    return error if error == error else float("inf")
