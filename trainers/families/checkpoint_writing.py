"""A model as the tensors of one file in the original layout: what was trained from memory, all else from the base."""
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..artifacts.checkpoint import in_precision
from ..artifacts.layer_names.unet import original_unet_name
from ..artifacts.ldm_layout import open_clip_pieces, original_vae_tensors
from ..artifacts.quantized.notes import HEADER
from ..artifacts.tensor_files import Entry, entry_of, finite, read_entries
from ..artifacts.tensor_header import read_header
from ..artifacts.weights import Weights
from ..spec import BaseModelSpec
from .sizes import UNET, VAE, unet_shape

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

COMPONENTS = (UNET, VAE, "cond_stage_model.", "conditioner.")
"""What else a file holds (markers, schedules) is no weight, and keeps its precision."""
RUNNING_MEAN = "model_ema."
"""Some old files hold a running mean of the denoiser too, which a trained denoiser makes wrong."""
Pieces = dict[str, tuple[Tensor, ...]]
"""Name in a single file → the tensors that make it up along the first axis: views, no copies."""


def unet_pieces(denoiser: "UNet2DConditionModel") -> Pieces:
    shape = unet_shape(denoiser.config)
    return {UNET + original_unet_name(name, *shape): (tensor,) for name, tensor in denoiser.state_dict().items()}


def vae_pieces(vae: nn.Module) -> Pieces:
    return {VAE + name: (tensor,) for name, tensor in original_vae_tensors(vae.state_dict()).items()}


def text_pieces(encoder: nn.Module, prefix: str) -> Pieces:
    """`prefix` says the layout: "….transformer." is transformers' own, "….model." OpenCLIP's."""
    weights = {
        name if name.startswith("text_projection") else f"text_model.{plain(name)}": tensor
        for name, tensor in encoder.state_dict().items()
    }
    pieces = open_clip_pieces(weights) if prefix.endswith(".model.") else {
        name: (tensor,) for name, tensor in weights.items()}
    return {prefix + name: each for name, each in pieces.items()}


def plain(name: str) -> str:
    """Old files and transformers 5.6 lack the part `text_model.` of a text encoder's names, others have it."""
    return name.replace("text_model.", "", 1)


def idle_layers(pieces: Pieces, count: int) -> Pieces:
    """`count` more layers behind an OpenCLIP text encoder that change nothing: the last one's, with outputs of zero."""
    layer = re.compile(r"(.+\.transformer\.resblocks\.)(\d+)\.(.+)")
    matches = {name: match for name in pieces if (match := layer.fullmatch(name))}
    last = max(int(match[2]) for match in matches.values())
    added = {}
    for name, (start, number, rest) in ((name, match.groups()) for name, match in matches.items()):
        if int(number) == last:
            silent = rest.startswith(("attn.out_proj.", "mlp.c_proj."))
            tensors = tuple(torch.zeros_like(each) for each in pieces[name]) if silent else pieces[name]
            added |= {f"{start}{last + more}.{rest}": tensors for more in range(1, count + 1)}
    return added


def checkpoint_entries(trained: Pieces, base: BaseModelSpec, others: Callable[[], Pieces],
                       dtype: torch.dtype) -> dict[str, Entry]:
    """Every tensor of the file. Of a single-file base all that was not trained is copied as it is, under the base's own
    names, and converted only from another precision; `others()` makes the rest of a diffusers folder's."""
    if base.layout != "single_file":
        pieces = {**others(), **trained}
        return {name: in_precision(entry_of(name, each), dtype) for name, each in pieces.items()}
    stored = Weights.of_file(Path(base.path))
    kept = {name: finite(entry, base.name) for name, entry in stored.entries.items() if not name.startswith(RUNNING_MEAN)}
    entries = {
        name: in_precision(entry, dtype) if name.startswith(COMPONENTS) and entry.dtype != dtype else entry
        for name, entry in kept.items()
    }
    for name, each in trained.items():
        own = name_in(kept, name)
        entries[own] = in_precision(entry_of(own, each), dtype)
    return entries


def untrained_entries(path: Path, numbers: Mapping[str, Entry], trained: tuple[str, ...],
                      dtype: torch.dtype) -> dict[str, Entry]:
    """The tensors of a file, as stored outside of the components with the prefixes `trained`, and inside of those as the
    `numbers` that are left of them: a trained component has no scales any more."""
    others = {name: entry for name, entry in numbers.items() if name.startswith(trained)}
    if HEADER in read_header(path)[1]:
        return others | {name: in_precision(entry, dtype) for name, entry in numbers.items() if name not in others}
    return others | {name: entry for name, entry in read_entries(path).items() if not name.startswith(trained)}


def name_in(stored: Mapping[str, Entry], name: str) -> str:
    """What a file calls a tensor."""
    return plain(name) if name not in stored and plain(name) in stored else name


def pairs_in_file(trained: Pieces, stored: Mapping[str, Entry]) -> Iterator[tuple[Tensor, Tensor]]:
    """(trained, base) of every trained tensor, the base's read one at a time."""
    for name, pieces in trained.items():
        entry = stored.get(name_in(stored, name))
        if entry is not None:
            start, whole = 0, entry.tensor()
            for piece in pieces:
                end = start + len(piece)
                yield piece, whole[start:end] if len(pieces) > 1 else whole
                start = end


def pairs_in_folder(module: nn.Module, files: list[Path]) -> Iterator[tuple[Tensor, Tensor]]:
    """(trained, base) of every tensor of a module, the base's read from a component of a diffusers folder."""
    weights = {plain(name): tensor for name, tensor in module.state_dict().items()}
    for file in files:
        for name, entry in read_entries(file).items():
            if plain(name) in weights:
                yield weights[plain(name)], entry.tensor()
