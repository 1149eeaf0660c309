"""Make the demo base again: a small, real Stable Diffusion 1.x that generates Noto and Twemoji emoji.

    python scripts/make_demo_base.py [--output DIR] [--size 64] [--vae-minutes 20] [--unet-minutes 40]
                                     [--device auto] [--work DIR]

Three stages, each kept in the work folder and reused when the command is given again: the images; the VAE, its latents
standardized; the UNet together with the text encoder. Then the parts are written as a diffusers folder in half precision,
loaded back, measured, and asked for a sheet of images. Needs npm and `pip install resvg-py`.

On a CPU two processes of one thread each share the work: that beats one process with two threads. On a GPU one process
takes larger batches. Budgets are wall-clock time because the learning rate has to finish its decay: that is when images
become sharp.
"""
import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing
from demo_base_training import (
    NOISE,
    SCALING_FACTOR,
    Recipe,
    Schedule,
    Worker,
    fast_in_bfloat16,
    standardize_latents,
    train_denoiser,
    train_vae,
)
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from emoji_images import (
    HELD_OUT_NAMES,
    NOTO,
    OPENMOJI,
    TRAINED_STYLES,
    DemoBaseError,
    EmojiImages,
    contact_sheet,
    fetch_packages,
    list_emoji,
    load_images,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = REPOSITORY / "demo_base"  # lends what is the same for every Stable Diffusion 1.x: CLIP's vocabulary and the index
SHIPPABLE_MEGABYTES = 60

RECIPES = {
    64: Recipe(),
    # For a GPU. The packages hold Noto and Twemoji at 64 × 64 only: twice the side gives smoother images, not finer ones.
    128: Recipe(size=128, vae_widths=(64, 128, 256, 256), vae_groups=32, unet_widths=(128, 256, 384, 384), text_width=256,
                text_layers=4, unet_schedule=Schedule(peak=6e-4, warmup_steps=200, held=0.45)),
}
SHEET_NAMES = (
    "cat face", "dog face", "red heart", "smiling face with sunglasses", "pizza", "red apple", "strawberry", "octopus",
    "automobile", "rocket", "sunflower", "cactus", "house", "hamburger", "crying face", "snowman", "lion", "tropical fish",
    "key", "guitar", "bicycle", "sailboat", "crown", "hot beverage")


def images_to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [N, S, S, 3] to float [N, 3, S, S] in -1…1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """[N, 4, s, s]: the most likely latents, not scaled."""
    batches = images_to_tensor(pixels).split(32)
    return torch.cat([vae.encode(batch.to(vae.device)).latent_dist.mode().cpu() for batch in batches])


@torch.no_grad()
def peak_signal_to_noise(vae: AutoencoderKL, pixels: np.ndarray) -> float:
    """Mean over the images, in dB."""
    decoded = torch.cat([vae.decode(batch).sample.clamp(-1, 1) for batch in encode(vae, pixels).split(32)])
    squared = ((decoded - images_to_tensor(pixels)) / 2).square().mean((1, 2, 3))
    return float(-10 * squared.log10().mean())


def run_worker(rank: int, count: int, bfloat16: bool, meeting_point: str, train: Callable[..., None],
               arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=count)
    train(Worker(rank, count, torch.device("cpu"), bfloat16), *arguments)
    torch.distributed.destroy_process_group()


def run_training(device: torch.device, work: Path, train: Callable[..., None], *arguments: object) -> None:
    """Call train(worker, *arguments): here on a GPU, in up to two processes on a CPU."""
    count = min(2, os.cpu_count() or 1) if device.type == "cpu" else 1
    bfloat16 = fast_in_bfloat16(device)
    print(f"{train.__name__} on {device.type}, {count} process(es), {'bfloat16' if bfloat16 else 'float32'}", flush=True)
    if count == 1:
        train(Worker(0, 1, device, bfloat16), *arguments)
        return
    meeting_point = work.resolve() / "meeting_point"
    meeting_point.unlink(missing_ok=True)
    try:
        torch.multiprocessing.spawn(run_worker, (count, bfloat16, meeting_point.as_uri(), train, arguments), nprocs=count)
    except torch.multiprocessing.ProcessException as failure:
        raise DemoBaseError(f"Training stopped. {str(failure).strip().splitlines()[-1]}") from failure
    finally:
        meeting_point.unlink(missing_ok=True)


def make_images(recipe: Recipe, packages_folder: Path, result: Path) -> None:
    packages = fetch_packages(packages_folder)
    emoji = list_emoji(packages)
    for file_name, styles in (("trained.npz", TRAINED_STYLES), ("openmoji.npz", (OPENMOJI,))):
        images = load_images(packages, emoji, styles, recipe.size)
        images.save(result / file_name)
        print(f"{file_name}: {len(images)} images of {len(set(images.names))} names", flush=True)


def make_vae(recipe: Recipe, device: torch.device, minutes: float, work: Path, result: Path) -> None:
    """Train the VAE, standardize its latents, and keep those of all images for the next stage."""
    run_training(device, work, train_vae, recipe, minutes, work / "images/trained.npz", result)
    vae = AutoencoderKL.from_pretrained(result).to(device).eval()
    pixels = EmojiImages.load(work / "images/trained.npz").pixels
    latents = encode(vae, pixels)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    print(f"VAE: latent mean {rounded(mean)}, standard deviation {rounded(std)} before standardizing", flush=True)
    if std.min() < 0.05 * std.max():
        raise DemoBaseError("A latent channel of the VAE collapsed: its standard deviation is under a twentieth of the "
                            "largest. Train it longer, or lower KL_WEIGHT.")
    standardize_latents(vae.cpu(), mean, std)
    vae.save_pretrained(result)
    standardized = (latents - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    np.savez(result / "latents.npz", latents=standardized.numpy())


def make_denoiser(recipe: Recipe, device: torch.device, minutes: float, work: Path, result: Path) -> None:
    run_training(device, work, train_denoiser, recipe, minutes, work / "images/trained.npz", work / "vae/latents.npz",
                 SHIPPED / "tokenizer", result)


def run_stages(work: Path, stages: dict[str, Callable[[Path], None]]) -> None:
    """Fill work/NAME for each stage. A finished folder is reused, unless a stage before it was made anew; one that was
    interrupted is never taken for finished, because a folder gets its name last."""
    anew = False
    for name, make in stages.items():
        folder, unfinished = work / name, work / f"{name}.unfinished"
        if folder.exists() and not anew:
            print(f"Stage {name}: reusing {folder}. Delete it to make it again.", flush=True)
            continue
        print(f"Stage {name}", flush=True)
        anew = True
        for leftover in (folder, unfinished):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(folder)


def add_text_model_prefix(path: Path) -> None:
    """transformers 5 writes a CLIPTextModel without the `text_model.` that ComfyUI and transformers 4 look for."""
    weights = load_file(path)
    save_file({f"text_model.{key.removeprefix('text_model.')}": weights[key] for key in weights}, path, {"format": "pt"})


def export(recipe: Recipe, work: Path, output: Path) -> None:
    """Write the parts as a diffusers folder in float16."""
    if output.resolve() != SHIPPED:
        shutil.copytree(SHIPPED / "tokenizer", output / "tokenizer", dirs_exist_ok=True)
        shutil.copy(SHIPPED / "model_index.json", output)
    models = (("vae", recipe.build_vae(), "vae/diffusion_pytorch_model"),
              ("unet", recipe.build_unet(), "denoiser/unet/diffusion_pytorch_model"),
              ("text_encoder", recipe.build_text_encoder(), "denoiser/text_encoder/model"))
    for name, model, weights in models:  # models loaded from a folder would write that folder's path into their config
        model.load_state_dict(load_file(work / f"{weights}.safetensors"))
        model.half().save_pretrained(output / name)
    add_text_model_prefix(output / "text_encoder/model.safetensors")
    DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1).save_pretrained(output / "scheduler")


def load_again(output: Path) -> StableDiffusionPipeline:
    """The exported parts in float32 with DPM++ 2M, having made sure that no weight is missing in the files."""
    parts = {}
    for name, kind in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        part, report = kind.from_pretrained(output / name, output_loading_info=True)
        if report["missing_keys"]:
            raise DemoBaseError(f"{output / name} was written without {sorted(report['missing_keys'])[:3]} and more: "
                                "this version of the libraries saves it differently.")
        parts[name] = part.float().eval()
    pipeline = StableDiffusionPipeline(
        **parts, tokenizer=CLIPTokenizer.from_pretrained(output / "tokenizer"),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(output / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def held_out_loss(pipeline: StableDiffusionPipeline, openmoji: EmojiImages, rounds: int = 16) -> float:
    """Mean squared error of the predicted noise on OpenMoji images, fixed noise and timesteps: what fine-tuning lowers."""
    latents = encode(pipeline.vae, openmoji.pixels[openmoji.indices(OPENMOJI, HELD_OUT_NAMES)]) * SCALING_FACTOR
    tokens = pipeline.tokenizer([f"{NOTO.words} of a {name}" for name in HELD_OUT_NAMES], padding="max_length",
                                max_length=77, return_tensors="pt").input_ids
    context = pipeline.text_encoder(input_ids=tokens).last_hidden_state
    cumulative = DDPMScheduler(**NOISE).alphas_cumprod
    generator, count = torch.Generator().manual_seed(7), len(latents)
    losses = []
    for number in range(rounds):
        noise = torch.randn(latents.shape, generator=generator)
        step = 1000 // count
        timesteps = (torch.arange(count) * step + torch.randint(step, (count,), generator=generator)).roll(number)
        kept = cumulative[timesteps].view(-1, 1, 1, 1)
        predicted = pipeline.unet(kept.sqrt() * latents + (1 - kept).sqrt() * noise, timesteps, context).sample
        losses.append(float((predicted - noise).square().mean()))
    return float(np.mean(losses))


def rounded(values: Tensor) -> list[float]:
    return [round(float(value), 3) for value in values]


def measure(pipeline: StableDiffusionPipeline, work: Path) -> dict[str, object]:
    """What tells a good demo base from a bad one, as numbers."""
    trained = EmojiImages.load(work / "images/trained.npz")
    openmoji = EmojiImages.load(work / "images/openmoji.npz")
    by_style = {style.words: trained.pixels[trained.styles == style.words] for style in TRAINED_STYLES}
    by_style["openmoji, never seen"] = openmoji.pixels
    latents = encode(pipeline.vae, trained.pixels[::4]) * SCALING_FACTOR
    return {
        "VAE PSNR in dB": {style: round(peak_signal_to_noise(pipeline.vae, pixels[::4]), 2)
                           for style, pixels in by_style.items()},
        "latent mean": rounded(latents.mean((0, 2, 3))),
        "latent standard deviation": rounded(latents.std((0, 2, 3))),
        "denoising loss on OpenMoji, never seen": round(held_out_loss(pipeline, openmoji), 4)}


Draw = Callable[[list[str], list[torch.Generator]], list[np.ndarray]]
"""Captions and a generator for the noise of each → images, uint8 [S, S, 3]."""


def drawn_by(pipeline: StableDiffusionPipeline) -> Draw:
    """20 steps, guidance 4."""
    def draw(prompts: list[str], generators: list[torch.Generator]) -> list[np.ndarray]:
        images = pipeline(prompts, generator=generators, num_inference_steps=20, guidance_scale=4.0, output_type="np").images
        return list((images * 255).round().astype(np.uint8))

    return draw


def draw_sheet(draw: Draw, path: Path, columns: int = 8) -> None:
    """SHEET_NAMES in both styles; rows alternate between the styles."""
    rows, labels = [], []
    for start in range(0, len(SHEET_NAMES), columns):
        names = SHEET_NAMES[start:start + columns]
        for style in TRAINED_STYLES:
            generators = [torch.Generator().manual_seed(start + number) for number in range(len(names))]
            rows.append(draw([f"{style.words} of a {name}" for name in names], generators))
            labels.append([f"{style.words[0].upper()}: {name}" for name in names])
    contact_sheet(rows, labels).save(path, optimize=True)


def chosen_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise DemoBaseError("PyTorch sees no CUDA GPU here. Leave --device away to train on the CPU.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_minutes(*minutes: float) -> None:
    if min(minutes) <= 0:
        raise DemoBaseError("Minutes to train have to be more than 0.")


def check_before_start(options: argparse.Namespace) -> None:
    check_minutes(options.vae_minutes, options.unet_minutes)
    lent = (SHIPPED / "model_index.json", SHIPPED / "tokenizer/vocab.json", SHIPPED / "tokenizer/merges.txt")
    if missing := [str(file) for file in lent if not file.exists()]:
        raise DemoBaseError(f"{' and '.join(missing)} not found. The repository holds them: restore them from there.")
    if options.output.exists() and any(options.output.iterdir()) and not (options.output / "model_index.json").exists():
        raise DemoBaseError(f"{options.output} holds something that is no diffusers folder. Name another one with --output.")


def make_demo_base(options: argparse.Namespace) -> None:
    recipe, work = RECIPES[options.size], options.work / str(options.size)
    options.output = options.output or work / "result"
    check_before_start(options)
    device = chosen_device(options.device)
    run_stages(work, {
        "images": lambda folder: make_images(recipe, options.work / "packages", folder),
        "vae": lambda folder: make_vae(recipe, device, options.vae_minutes, work, folder),
        "denoiser": lambda folder: make_denoiser(recipe, device, options.unet_minutes, work, folder)})
    export(recipe, work, options.output)
    pipeline = load_again(options.output)
    measured = measure(pipeline, work)
    (work / "checks.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=2), flush=True)
    draw_sheet(drawn_by(pipeline), options.output / "grid.png")
    megabytes = sum(file.stat().st_size for file in options.output.rglob("*.safetensors")) / 1e6
    print(f"The demo base is in {options.output}: {megabytes:.1f} MB of weights, images in grid.png.")
    if megabytes > SHIPPABLE_MEGABYTES:
        print(f"That is more than {SHIPPABLE_MEGABYTES} MB: too large to ship in the repository.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="the diffusers folder to write; default: WORK/SIZE/result")
    parser.add_argument("--size", type=int, choices=sorted(RECIPES), default=64, help="side of the images in pixels")
    parser.add_argument("--vae-minutes", type=float, default=20)
    parser.add_argument("--unet-minutes", type=float, default=40)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build/demo_base", help="keeps packages and stages")
    try:
        make_demo_base(parser.parse_args())
    except DemoBaseError as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit("Stopped. Finished stages are kept; the same command goes on with the next one.")


if __name__ == "__main__":
    main()
