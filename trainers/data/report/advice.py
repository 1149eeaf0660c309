"""What others found to work for so many images: figures from their own guides, as advice and not as a rule."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Practice:
    """A method's usual number of images and of steps with one image each. `source` says whose figures they are."""

    method: str
    images: tuple[int, int]
    steps: tuple[int, int]
    source: str
    more: str = ""


PRACTICES = (
    Practice("LoRA", (10, 20), (500, 1600),
             "images: ComfyUI's documentation; steps: diffusers' SDXL example 500, kohya's guide 1,600"),
    Practice("DreamBooth", (3, 5), (400, 800),
             "images: Ruiz et al. 2022; steps: diffusers' guide, 400 alone and 800 with class images",
             "add 200 to 300 class images"),
    Practice("Textual Inversion", (3, 5), (500, 3000),
             "images: Gal et al. 2022; steps: diffusers' examples, 500 for SDXL and 3,000 for SD 1.x"),
)


def advice(images: int, seen: int) -> list[str]:
    """A sentence for each method. `seen` counts repeats: how many images one round through the dataset has."""
    lines = []
    for practice in PRACTICES:
        (few, many), (short, long) = practice.images, practice.steps
        if images < few:
            fit = f"{few} to {many} are usual; with {images} expect it to repeat them, so vary and stop early"
        elif images <= many:
            fit = f"{images} is a usual number"
        else:
            fit = f"{few} to {many} are usual and {images} are more to learn from, if they show the same thing"
        more = f"; {practice.more}" if practice.more else ""
        lines.append(f"{practice.method}: {fit}. {short:,} to {long:,} steps of one image show each "
                     f"{_times(short / seen)} to {_times(long / seen)} times{more} ({practice.source}).")
    lines.append("Hypernetwork: nobody whose figures we know gives a number of images; start as for a LoRA.")
    return lines


def _times(number: float) -> str:
    return f"{number:.0f}" if number >= 2 else f"{number:.1f}"
