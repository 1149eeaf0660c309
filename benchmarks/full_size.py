"""A Stable Diffusion 1.x checkpoint of full size with random weights, and images to train on.

    python -m benchmarks.full_size FILE

Speed, memory and key names depend on shapes only, so random weights measure as well as trained ones.
"""
import subprocess
import sys
from pathlib import Path

from .pack import ROOT, load_pack

FAMILY = "sd1"


def make_checkpoint(path: Path) -> Path:
    """Write the checkpoint in a process of its own, so that its memory is given back."""
    subprocess.run([sys.executable, "-m", f"{__package__}.full_size", str(path)], cwd=ROOT, check=True)
    return path


def make_images(folder: Path, count: int, side: int) -> Path:
    """Square images of noise with captions."""
    import numpy
    from PIL import Image

    folder.mkdir(parents=True)
    draw = numpy.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(0, 256, (side, side, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"noise_{number}.png")
        (folder / f"noise_{number}.txt").write_text(f"noise, number {number}", encoding="utf-8")
    return folder


def build_parts():
    """(UNet, VAE, text encoder) from the family's own configs, randomly initialized, in half precision."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from trainers.families.component_configs import CONFIGS

    folder = CONFIGS / FAMILY
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")).half()
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")).half()
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")).half()
    return unet, vae, text


def shapes_of(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a full-size single file, without any weights."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from trainers.families.component_configs import CONFIGS

    load_pack()
    from tests.support.tiny import single_file_weights

    folder = CONFIGS / family
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text = [CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))]
        if family == "sdxl":
            text.append(CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text_encoder_2")))
        return {name: tuple(each.shape) for name, each in single_file_weights(family, unet, vae, *text).items()}


def write_checkpoint(path: Path):
    """One file, fp16, in the original layout."""
    from safetensors.torch import save_file

    load_pack()
    from tests.support.tiny import single_file_weights

    save_file(single_file_weights(FAMILY, *build_parts()), path, metadata={"format": "pt"})


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]))
