"""Which tensors of an embedding file are the word, and for which text encoders: told from names and shapes alone.

Names that trainers write: A1111 `string_to_param`, kohya `emb_params`, ComfyUI and diffusers' SDXL scripts `clip_l`,
`clip_g`, `t5xxl`, OneTrainer `clip_l`, `clip_g`, `t5` (and `…_out`, vectors behind the encoder), cog and diffusers' first
SDXL scripts `text_encoders_0`, `text_encoders_1`, diffusers the word itself or `<s0>`, `<s1>`, …, LoRA files
`bundle_emb.<word>.…`. The width decides where a name says something else: it cannot be mistaken.
"""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..errors import UserError
from ..words import listed, shown

SINGLE = "emb_params"
ENCODER_OF_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g", 4096: "t5xxl"}
ENCODERS = {
    **{name: name for name in ENCODER_OF_WIDTH.values()}, "t5": "t5xxl",
    "text_encoder": "clip_l", "text_encoder_1": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl",
    "text_encoders_0": "clip_l", "text_encoders_1": "clip_g", "text_encoders_2": "t5xxl",
}
"""Names of tensors → the encoder that they are meant for, unless a width of `ENCODER_OF_WIDTH` tells another."""
MOST_VECTORS, WIDEST = 75, 16_384
_WORD = re.compile(rf"<[^<>]+>|\*|{SINGLE}|emp_params")
BUNDLE = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|clip_[lgh]|t5xxl|t5)", re.DOTALL)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """Names of the tensors that make the word, one below the other, for each text encoder; and what people should know of
    the rest of the file."""

    tensors: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()


def is_vectors(shape: Shape) -> bool:
    """[width], or [vectors, width] for 1 to 75 places of a prompt."""
    rows = (1, *shape)[-2:]
    return len(shape) in (1, 2) and 1 <= rows[0] <= MOST_VECTORS and 1 <= rows[1] <= WIDEST


def choose(shapes: Mapping[str, Shape], title: str, joined: bool = False) -> Choice:
    """The word of a file whose tensors have these shapes, in the order in which ComfyUI meets them. `joined`: all of one
    width are one word, as ComfyUI reads a list. Raises UserError when there is none; `title` is the file's name."""
    others: Sequence[str] = ()
    outputs = [name for name in shapes if name.endswith("_out")]
    names = [name for name in shapes if name not in outputs and is_vectors(shapes[name])]
    if joined:
        chosen, notes = _by_width(names, shapes), []
    elif any(name in ENCODERS for name in names):
        chosen, notes = _by_name([name for name in names if name in ENCODERS], shapes), []
    elif bundled := {name: found for name in names if (found := BUNDLE.fullmatch(name))}:
        chosen, notes = _bundled(bundled, shapes)
    else:
        # Beside the matrices of a model, only what is called like a word is one.
        words_only = all(name in names or name in outputs or prod(shape) == 1 for name, shape in shapes.items())
        others = names if words_only else [name for name in names if _WORD.fullmatch(name)]
        chosen, notes = _words(others, shapes)
    if not chosen or max(_rows(group, shapes) for group in chosen.values()) > MOST_VECTORS:
        raise UserError(f"{title!r} is no embedding: it holds no vectors for 1 to {MOST_VECTORS} places of a prompt. Choose "
                        "a file that was made by Textual Inversion.")
    if not joined and not notes:
        notes = _unfound(chosen, list(shapes))
    told = {name for parts in chosen.values() for name in parts}.union(others)
    unused = [name for name in shapes if name not in told]
    if unused:
        notes = [*notes, f"{listed(unused)} {'is' if len(unused) == 1 else 'are'} not used"]
    if len(chosen) == 1 and not chosen.keys() & {"clip_g", "t5xxl"}:
        chosen = {SINGLE: next(iter(chosen.values()))}
    return Choice(chosen, tuple(notes))


def _rows(names: Sequence[str], shapes: Mapping[str, Shape]) -> int:
    """The vectors of some tensors together."""
    return sum((1, *shapes[name])[-2] for name in names)


def _encoder(name: str, shape: Shape) -> str:
    return ENCODER_OF_WIDTH.get(shape[-1], ENCODERS.get(name, SINGLE))


def _by_name(names: Sequence[str], shapes: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """One tensor for each encoder: the one of its own name before others of its width."""
    chosen: dict[str, tuple[str, ...]] = {}
    for name in sorted(names, key=lambda name: ENCODERS[name] != name):
        chosen.setdefault(_encoder(name, shapes[name]), (name,))
    return {encoder: chosen[encoder] for encoder in sorted(chosen, key=lambda encoder: names.index(chosen[encoder][0]))}


def _by_width(names: Sequence[str], shapes: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    groups: dict[int, tuple[str, ...]] = {}
    for name in names:
        width = shapes[name][-1]
        groups[width] = (*groups.get(width, ()), name)
    if len(groups) > 1 and not groups.keys() <= ENCODER_OF_WIDTH.keys():
        return {}
    return {ENCODER_OF_WIDTH.get(width, SINGLE): group for width, group in groups.items()}


def _bundled(parts: Mapping[str, re.Match], shapes: Mapping[str, Shape]) -> tuple[dict, list[str]]:
    """Words packed into a LoRA file, by their names taken apart by `BUNDLE`: ComfyUI reads all of them as one."""
    whole = [name for name in parts if parts[name][2].startswith("string_to_param")]
    chosen = _by_width(whole or list(parts), shapes)
    words = list(dict.fromkeys(parts[name][1] for group in chosen.values() for name in group))
    several = f"it packs the words {listed(words)}, which are read as one behind the other, as ComfyUI does"
    return chosen, [several] if len(words) > 1 else []


def _words(names: Sequence[str], shapes: Mapping[str, Shape]) -> tuple[dict, list[str]]:
    """Tensors that are called after their words."""
    groups, chosen, notes = _by_width(names, shapes), {}, []
    for encoder, group in groups.items():
        first, count = group[0], _rows(group, shapes)
        if len(group) > 1 and _numbered(group) and count <= MOST_VECTORS:
            chosen[encoder] = tuple(sorted(group, key=_number))
            notes.append(f"{listed(chosen[encoder])} are read as one word of {count} vectors; ComfyUI itself reads only "
                         f"{shown(first)} of the file, so save it anew with Merge Embeddings")
        else:
            chosen[encoder] = (first,)
            if len(group) > 1:
                notes.append(f"it holds {len(group)} words, {listed(group, 20)}; only {shown(first)} is read, as in "
                             "ComfyUI")
    return chosen, notes


_PLACE = re.compile(r"<s(\d{1,4})>|.*?>?_(\d{1,4})", re.DOTALL)


def _number(name: str) -> int:
    match = _PLACE.fullmatch(name)
    return int(match[1] or match[2]) if match else 0


def _numbered(names: Sequence[str]) -> bool:
    """Whether they are the vectors of one word, as diffusers numbers them: <s0>, <s1>, … or <word>, <word>_1, <word>_2, …"""
    in_order = sorted(names, key=_number)
    return in_order in ([f"<s{number}>" for number in range(len(names))],
                        [in_order[0], *(f"{in_order[0]}_{number}" for number in range(1, len(names)))])


def _unfound(chosen: Mapping[str, tuple[str, ...]], names: Sequence[str]) -> list[str]:
    """A note when ComfyUI, which looks for the encoder's name and else takes the first tensor, reads something else."""
    found = {encoder: encoder if encoder in names else names[0] for encoder in chosen}
    lost = [encoder for encoder, (name, *_) in chosen.items() if found[encoder] != name and not BUNDLE.fullmatch(name)]
    if not lost:
        return []
    theirs = listed([chosen[encoder][0] for encoder in lost])
    return [f"prompts of ComfyUI do not find {theirs}, because they look for {listed(lost)}; save it anew with Merge "
            "Embeddings"]
