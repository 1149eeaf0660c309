"""What others found to work for so many pictures: figures from their own guides, as advice and not as a rule."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Practice:
    """A method's usual number of pictures and of steps with one picture each. `source` says whose figures they are."""

    method: str
    pictures: tuple[int, int]
    steps: tuple[int, int]
    source: str
    more: str = ""


PRACTICES = (
    Practice("LoRA", (10, 20), (500, 1600),
             "pictures: ComfyUI's documentation; steps: diffusers' SDXL example 500, kohya's guide 1,600"),
    Practice("DreamBooth", (3, 5), (400, 800),
             "pictures: Ruiz et al. 2022; steps: diffusers' guide, 400 alone and 800 with class images",
             "add 200 to 300 class images"),
    Practice("Textual Inversion", (3, 5), (500, 3000),
             "pictures: Gal et al. 2022; steps: diffusers' examples, 500 for SDXL and 3,000 for SD 1.x"),
)


def advice(pictures: int, seen: int) -> list[str]:
    """A sentence for each method. `seen` counts repeats: how many pictures one round through the dataset has."""
    lines = []
    for practice in PRACTICES:
        (few, many), (short, long) = practice.pictures, practice.steps
        if pictures < few:
            fit = f"{few} to {many} are usual; with {pictures} expect it to repeat them, so vary and stop early"
        elif pictures <= many:
            fit = f"{pictures} is a usual number"
        else:
            fit = f"{few} to {many} are usual and {pictures} are more to learn from, if they show the same thing"
        more = f"; {practice.more}" if practice.more else ""
        lines.append(f"{practice.method}: {fit}. {short:,} to {long:,} steps of one picture show each "
                     f"{_times(short / seen)} to {_times(long / seen)} times{more} ({practice.source}).")
    lines.append("Hypernetwork: nobody whose figures we know gives a number of pictures; start as for a LoRA.")
    return lines


def _times(number: float) -> str:
    return f"{number:.0f}" if number >= 2 else f"{number:.1f}"
