"""What a LoRA step on every released base is planned to need at 1024 × 1024 pixels, and how long it may take.

    python -m benchmarks.base_plan [--only RELEASE …]

Rank 16, one image, gradient checkpointing, AdamW, the denoiser of full size on the meta device: nothing is downloaded, no
weight has memory. For each card the first settings of Training Memory that fit are taken, in the order in which they cost
time: 16 bits, 8 bits, swapped blocks, activations in main memory. Seconds are a calculation, not a measurement: the
operations of the step at a fraction of the card's published rate, or the swapped bytes through its bus where that takes
longer.
"""
import argparse
from dataclasses import dataclass

from .memory_plan import OTHERS, adapted, plan_of
from .pack import load_pack
from .report import RESULTS, finish

SIDE = 1024


@dataclass(frozen=True)
class Card:
    """`rate` in 10¹² operations a second, dense, bf16 with sums in float32 (published by the maker); `bus` in GB a
    second."""

    gb: int
    name: str
    rate: float
    bus: float

    @property
    def free(self) -> int:
        return int(self.gb * 1e9 * 1.0737 - OTHERS * 1e9)


CARDS = (Card(8, "RTX 4060", 30, 12), Card(12, "RTX 4070", 58, 24), Card(16, "RTX 4080", 97, 24),
         Card(24, "RTX 4090", 165, 24), Card(48, "RTX 6000 Ada", 364, 24), Card(80, "A100", 312, 24))
USED = 0.4
"""Of the published rate, in a training step."""
PASSES = 2
"""How often a swapped block comes in a step: for the forward pass and for the backward pass."""


@dataclass(frozen=True)
class Text:
    """A long caption as the denoiser gets it: tokens and width of the states, and the width of the pooled one."""

    tokens: int
    width: int
    pooled: int = 0
    ids: bool = False
    """With the numbers of tokens beside them."""
    layers: int = 0
    """Of the text encoder, whose states come one beside the other; 0: of one, or joined."""


TEXTS = {
    "sd3": Text(154, 4096, 2048), "flux": Text(512, 4096, 768), "chroma": Text(256, 4096), "z_image": Text(256, 2560),
    "flux2": Text(512, 0), "flux3": Text(240, 20480), "qwen_image": Text(256, 3584), "qwen_image_21": Text(256, 4096),
    "krea2": Text(256, 2560, layers=12), "anima": Text(256, 1024, ids=True),
}
"""By family. A width of 0 is what the denoiser's text layer takes."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="releases (default: all)")
    arguments = parser.parse_args()
    load_pack()
    from tests.support.full_flow import RELEASES

    rows = []
    for release in arguments.only or RELEASES:
        rows += planned(release)
        print(row_in_words(rows[-len(CARDS):]), flush=True)
    (RESULTS / "base_plan.md").write_text(table(rows), encoding="utf-8")
    finish("base_plan", [{
        "measure": "bases and cards for which there are settings", "value": sum("peak_gb" in row for row in rows),
        "unit": f"of {len(rows)}", "goal": "", "met": True}], {"rows": rows, "cards": [vars(card) for card in CARDS],
                                                                "part_of_the_rate": USED})


def planned(release: str) -> list[dict]:
    """A row for each card."""
    import torch
    from finetune.trainers import families
    from torch.utils.flop_counter import FlopCounterMode

    name = _family_of(release)
    step = _step_of(families.get(name), TEXTS[name])
    plain = plan_of(families.get(name), _empty(release), step, "same", torch.bfloat16)
    packed = plan_of(families.get(name), _empty(release), step, "int8", torch.bfloat16)
    offloaded = plan_of(families.get(name), _empty(release), step, "int8", torch.bfloat16, offload=True)
    model = _empty(release).float()
    adapted(families.get(name), model)
    with FlopCounterMode(display=False) as counter:
        step(model)
    operations = counter.get_total_flops()
    parameters = sum(each.numel() for each in model.parameters() if not each.requires_grad)
    rows = []
    for card in CARDS:
        row = {"base": release, "family": name, "card_gb": card.gb, "billions": round(parameters / 1e9, 1),
               "tera_operations": round(operations / 1e12, 1)}
        for storage, offload, plan, may_swap in (("same", False, plain, False), ("int8", False, packed, False),
                                                 ("int8", False, packed, True), ("int8", True, offloaded, True)):
            swapped = plan.fewest_blocks(card.free)
            if swapped == 0 or (swapped and may_swap):
                moved = PASSES * sum(sorted(plan.swapped)[-swapped:] if swapped else [])
                rows.append(row | {
                    "frozen_precision": storage, "offload_activations": offload, "swapped_blocks": swapped,
                    "blocks": len(plan.swapped), "peak_gb": round(plan.on_gpu(swapped) / 1e9, 1),
                    "main_memory_gb": round(moved / PASSES / 1e9, 1),
                    "seconds": round(max(operations / (USED * card.rate * 1e12), moved / (card.bus * 1e9)), 1)})
                break
        else:
            rows.append(row)
    return rows


def _family_of(release: str) -> str:
    from tests.support.full_flow import RELEASES

    return RELEASES[release][0]


def _empty(release: str):
    """The released denoiser in native layout on the meta device, bf16."""
    import torch
    from finetune.trainers import families

    from tests.support.full_flow import native_shapes

    with torch.device("meta"):
        denoiser = families.get(_family_of(release)).make_denoiser(native_shapes(release))
    return denoiser.to(torch.bfloat16).requires_grad_(False)


def _step_of(family, text: Text):
    """The gradients of one image."""
    import torch
    from finetune.trainers.families.conditioning import Conditioning
    from finetune.trainers.spec import BaseModelSpec

    released = BaseModelSpec(family=family.name, path="", name=family.name, layout="single_file", prediction_type="flow",
                             fingerprint="")

    def step(denoiser):
        form = family.latent_format(released)
        dtype = next(each.dtype for each in denoiser.parameters() if each.is_floating_point())
        with torch.device("meta"):
            width = text.width or denoiser.context_embedder.in_features
            layers = (text.layers,) if text.layers else ()
            said = {"hidden": torch.randn(1, text.tokens, *layers, width, dtype=dtype)}
            said |= {"ids": torch.ones(1, text.tokens, dtype=torch.int64)} if text.ids else {}
            said |= {"pooled": torch.randn(1, text.pooled, dtype=dtype)} if text.pooled else {}
            latents = torch.randn(1, form.channels, SIDE // form.downscale, SIDE // form.downscale)
            timesteps = torch.full((1,), 500.0)
        family.predict(denoiser, latents, timesteps, Conditioning(said)).float().square().mean().backward()
    return step


# ---- as a table ----------------------------------------------------------------------------------------------------

def table(rows: list[dict]) -> str:
    """One line for each base, one column for each card."""
    lines = ["| base | billions of parameters | " + " | ".join(f"{card.gb} GB" for card in CARDS) + " |",
             "|---" * (2 + len(CARDS)) + "|"]
    for base in dict.fromkeys(row["base"] for row in rows):
        own = [row for row in rows if row["base"] == base]
        lines.append(f"| {base} | {own[0]['billions']} | " + " | ".join(map(_cell, own)) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict) -> str:
    if "peak_gb" not in row:
        return "–"
    form = "bf16" if row["frozen_precision"] == "same" else row["frozen_precision"]
    swapped = f", {row['swapped_blocks']} of {row['blocks']} swapped" if row["swapped_blocks"] else ""
    offload = ", activations offloaded" if row["offload_activations"] else ""
    return f"{row['peak_gb']} GB, {form}{swapped}{offload}, {row['seconds']} s"


def row_in_words(rows: list[dict]) -> str:
    return f"{rows[0]['base']}: " + "; ".join(f"{row['card_gb']} GB: {_cell(row)}" for row in rows)


if __name__ == "__main__":
    main()
