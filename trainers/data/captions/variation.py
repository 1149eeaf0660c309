"""An image's caption as it stands in one step: tags shuffled and left out, inside a sentence that was picked."""
import torch

from ...spec import CaptionVariationSpec
from ...spec.dataset import CAPTION


def vary_caption(caption: str, variation: CaptionVariationSpec, generator: torch.Generator) -> str:
    """The caption as `variation` wants it; the same generator gives the same caption.

    First the tags behind the kept ones are left out, each by itself, then what is left is shuffled, every order being
    equally likely, then one of the templates is taken, each equally likely.
    """
    if variation.shuffle or variation.tag_dropout:
        caption = _vary_tags(caption, variation, generator)
    if variation.templates:
        chosen = int(torch.randint(len(variation.templates), (), generator=generator))
        caption = variation.templates[chosen].replace(CAPTION, caption)
    return caption


def _vary_tags(caption: str, variation: CaptionVariationSpec, generator: torch.Generator) -> str:
    kept, others = variation.tags(caption)
    if variation.tag_dropout:
        lots = torch.rand(len(others), generator=generator).tolist()
        others = [tag for tag, lot in zip(others, lots) if lot >= variation.tag_dropout]
    if variation.shuffle:
        others = [others[place] for place in torch.randperm(len(others), generator=generator).tolist()]
    between = variation.separator if variation.separator[-1].isspace() else f"{variation.separator} "
    return between.join([*kept, *others])
