"""Make the demo flow base again: a small, real model of Stable Diffusion 3's kind that generates Noto and Twemoji emoji.

    python scripts/make_demo_flow_base.py [--output DIR] [--vae-minutes 20] [--flow-minutes 70] [--device auto] [--work DIR]

Three stages, each kept in the work folder and reused when the command is given again: the images; the VAE, from the demo
base's but with 16 channels; the transformer together with the text encoder. Then all becomes one file in half precision with
the original names, is loaded back, measured, and asked for a sheet of images. Needs npm and `pip install resvg-py`.
"""
import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_flow_training import SCALE, SHIFT, FlowRecipe, encode_mode, train_flow, train_flow_vae, widened
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from emoji_images import HELD_OUT_NAMES, NOTO, OPENMOJI, TRAINED_STYLES, DemoBaseError, EmojiImages
from make_demo_base import (
    REPOSITORY,
    SHIPPABLE_MEGABYTES,
    SHIPPED,
    add_text_model_prefix,
    check_minutes,
    chosen_device,
    draw_sheet,
    images_to_tensor,
    make_images,
    peak_signal_to_noise,
    rounded,
    run_stages,
    run_training,
)
from safetensors.torch import load_file

sys.path.insert(0, str(REPOSITORY))
from trainers import families
from trainers.artifacts.tensor_files import write_entries
from trainers.families.recognition import recognize
from trainers.families.sizes import stated_sizes
from trainers.sampling.previews import make_images as draw_images

FILE = "demo_flow_base.safetensors"
SAMPLING_SHIFT = 3.0  # SD3's
CONTEXT, CLIP_G = 4096, 1280  # ComfyUI fills CLIP-L's states up to T5's width, and puts zeros for CLIP-G's pooled ones
CPU = torch.device("cpu")


def make_flow_vae(recipe: FlowRecipe, device: torch.device, minutes: float, work: Path, result: Path) -> None:
    """Train the VAE, and keep the latents of all images for the next stage."""
    images = work / "images/trained.npz"
    run_training(device, work, train_flow_vae, recipe, load_file(SHIPPED / "vae/diffusion_pytorch_model.safetensors"),
                 minutes, images, result)
    vae = AutoencoderKL.from_pretrained(result).to(device).eval()
    latents = (encode_mode(vae, EmojiImages.load(images).pixels).cpu() - SHIFT) * SCALE
    np.savez(result / "latents.npz", latents=latents.numpy())


def make_flow(recipe: FlowRecipe, device: torch.device, minutes: float, work: Path, result: Path) -> None:
    run_training(device, work, train_flow, recipe, load_file(SHIPPED / "text_encoder/model.safetensors"), minutes,
                 work / "images/trained.npz", work / "vae/latents.npz", SHIPPED / "tokenizer", result)


def export(recipe: FlowRecipe, work: Path, output: Path) -> Path:
    """Write the parts as a diffusers folder in float16 into `work`, and as one file with SD3's names into `output`."""
    folder, text, vae = work / "folder", recipe.build_text_encoder(), recipe.build_vae()
    trained = load_file(work / "flow/transformer/diffusion_pytorch_model.safetensors")
    transformer = widened(recipe, trained, CONTEXT, recipe.text_width + CLIP_G)
    text.load_state_dict(load_file(work / "flow/text_encoder/model.safetensors"))
    vae.load_state_dict(load_file(work / "vae/diffusion_pytorch_model.safetensors"))
    for name, model in (("transformer", transformer), ("text_encoder", text), ("vae", vae)):
        model.half().save_pretrained(folder / name)
    add_text_model_prefix(folder / "text_encoder/model.safetensors")
    FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT).save_pretrained(folder / "scheduler")
    base = recognize(str(folder), folder.name)
    family = families.get(base.family)
    entries = family.checkpoint_entries(base, family.load_denoiser(base, torch.float32),
                                        family.load_text(base, torch.float32).encoders, torch.float16)
    output.mkdir(parents=True, exist_ok=True)
    write_entries(output / FILE, entries, {"format": "pt", **stated_sizes(folder, base.family)})
    return output / FILE


@dataclass(frozen=True)
class DemoFlowBase:
    """The file as the pack trains and previews with it, in float32."""
    base: Any
    family: Any
    denoiser: Any
    text: Any
    vae: Any

    @classmethod
    def load(cls, file: Path) -> "DemoFlowBase":
        base = recognize(str(file), file.stem)
        family = families.get(base.family)
        return cls(base, family, family.load_denoiser(base, torch.float32), family.load_text(base, torch.float32),
                   family.load_vae(base))

    @torch.no_grad()
    def draw(self, prompts: list[str], generators: list[torch.Generator]) -> list[np.ndarray]:
        """20 Euler steps, guidance 4."""
        negative, form = self.family.encode_captions(self.text, [""]), self.family.latent_format(self.base)
        return [np.asarray(draw_images(
            self.family, self.denoiser, self.vae, form, self.family.sampler(self.base),
            self.family.encode_captions(self.text, [prompt]), negative, [generator], 20, 4.0,
            self.family.native_resolution(self.base), CPU)[0]) for prompt, generator in zip(prompts, generators)]

    @torch.no_grad()
    def held_out_loss(self, openmoji: EmojiImages, rounds: int = 16) -> float:
        """Mean squared error of the velocity on OpenMoji images, fixed noise and sigmas: what fine-tuning lowers."""
        pixels = images_to_tensor(openmoji.pixels[openmoji.indices(OPENMOJI, HELD_OUT_NAMES)])
        latents = self.family.encode_images(self.vae, pixels, self.family.latent_format(self.base))
        said = self.family.encode_captions(self.text, [f"{NOTO.words} of a {name}" for name in HELD_OUT_NAMES])
        generator, count, losses = torch.Generator().manual_seed(7), len(latents), []
        for number in range(rounds):
            noise = torch.randn(latents.shape, generator=generator)
            sigmas = ((torch.arange(count) + torch.rand(count, generator=generator)) / count).roll(number)
            noised = torch.lerp(latents, noise, sigmas.view(-1, 1, 1, 1))
            predicted = self.family.predict(self.denoiser, noised, 1000 * sigmas, said)
            losses.append(float((predicted - (noise - latents)).square().mean()))
        return float(np.mean(losses))

    def measure(self, work: Path) -> dict[str, object]:
        """What tells a good base from a bad one, as numbers."""
        trained, openmoji = (EmojiImages.load(work / f"images/{name}.npz") for name in ("trained", "openmoji"))
        by_style = {style.words: trained.pixels[trained.styles == style.words] for style in TRAINED_STYLES}
        by_style["openmoji, never seen"] = openmoji.pixels
        latents = (encode_mode(self.vae, trained.pixels[::4]) - SHIFT) * SCALE
        return {
            "VAE PSNR in dB": {style: round(peak_signal_to_noise(self.vae, pixels[::4]), 2)
                               for style, pixels in by_style.items()},
            "latent mean": rounded(latents.mean((0, 2, 3))),
            "latent standard deviation": rounded(latents.std((0, 2, 3))),
            "denoising loss on OpenMoji, never seen": round(self.held_out_loss(openmoji), 4)}


def make_demo_flow_base(options: argparse.Namespace) -> None:
    check_minutes(options.vae_minutes, options.flow_minutes)
    recipe, device = FlowRecipe(), chosen_device(options.device)
    run_stages(options.work, {
        "images": lambda folder: make_images(recipe, options.packages, folder),
        "vae": lambda folder: make_flow_vae(recipe, device, options.vae_minutes, options.work, folder),
        "flow": lambda folder: make_flow(recipe, device, options.flow_minutes, options.work, folder)})
    output = options.output or options.work / "result"
    file = export(recipe, options.work, output)
    made = DemoFlowBase.load(file)
    measured = made.measure(options.work)
    (options.work / "checks.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=2), flush=True)
    draw_sheet(made.draw, output / "grid.png")
    megabytes = file.stat().st_size / 1e6
    print(f"The demo flow base is {file}: {megabytes:.1f} MB, images in grid.png.")
    if megabytes > SHIPPABLE_MEGABYTES:
        print(f"That is more than {SHIPPABLE_MEGABYTES} MB: too large to ship in the repository.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="where to write the file and the sheet; default: WORK/result")
    parser.add_argument("--vae-minutes", type=float, default=20)
    parser.add_argument("--flow-minutes", type=float, default=70)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build/demo_flow_base", help="keeps the stages")
    parser.add_argument("--packages", type=Path, default=REPOSITORY / "build/demo_base/packages", help="keeps the downloads")
    try:
        make_demo_flow_base(parser.parse_args())
    except DemoBaseError as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit("Stopped. Finished stages are kept; the same command goes on with the next one.")


if __name__ == "__main__":
    main()
