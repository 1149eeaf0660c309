"""Which files go with a denoiser: what somebody chose, and for the rest what fits among the files that there are."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..artifacts.tensor_header import read_header
from ..errors import UserError
from . import FAMILIES
from .component_recognition import FoundComponent, components_of, is_full
from .protocol import Family
from .separate_files import WantedPart, held_in_words, missing_part

SMALLER = ("scaled fp8", "int8", "mxfp8", "fp8", "nvfp4")
"""How a text encoder may be kept in fewer bits, the least rounded first. Full precision comes before all of them: captions
are encoded once, before the denoiser is loaded, so that the larger file costs no memory while training."""


@dataclass(frozen=True)
class Candidate:
    """A file by its header; `name` is what people see."""

    name: str
    path: Path
    held: tuple[FoundComponent, ...]

    @classmethod
    def of(cls, name: str, path: Path) -> "Candidate":
        """Raises UserError for a file that is damaged, or none of safetensors."""
        if path.suffix.lower() not in (".safetensors", ".sft"):
            raise UserError(f"{name!r} is a {path.suffix or 'nameless'} file. Only .safetensors files are read, because "
                            "other formats can run code. Take the .safetensors of the same model.")
        return cls(name, path, components_of(read_header(path)[0]))

    @property
    def stem(self) -> str:
        return PurePath(self.name.replace("\\", "/")).stem.lower()

    def part(self, want: WantedPart) -> FoundComponent | None:
        """Its component that is the wanted one. VAEs are read under the original names of their layers."""
        return next((each for each in self.held
                     if want.fits(each) and (each.kind, each.layout) != ("vae", "diffusers")), None)


@dataclass(frozen=True)
class TakenPart:
    want: WantedPart
    file: Candidate | None
    """None for a part that models of the family may lack."""
    chosen: bool

    @property
    def words(self) -> str:
        """For example "CLIP-L text encoder: clip_l.safetensors (fp16), found"."""
        held = self.file and self.file.part(self.want)
        if self.file is None or held is None:
            return f"{self.want.title}: none"
        return f"{self.want.title}: {self.file.name} ({held.storage}){'' if self.chosen else ', found'}"


def family_of(denoiser: Candidate) -> Family:
    """Raises UserError for a file without a denoiser of a family that can be put together."""
    family = next((FAMILIES[each.family] for each in denoiser.held if each.family in FAMILIES), None)
    if family is None:
        raise UserError(f"{denoiser.name!r} holds {held_in_words(denoiser.held)}, and no denoiser of a family that can be "
                        f"trained ({', '.join(each.title for each in FAMILIES.values())}). Choose one of "
                        "models/diffusion_models.")
    if not family.separate_parts:
        raise UserError(f"{denoiser.name!r} is a {family.title} model, which is not read from separate files.")
    return family


def find_parts(denoiser: Candidate, chosen: Sequence[Candidate], offered: Sequence[Candidate],
               text_encoders: int) -> tuple[TakenPart, ...]:
    """The parts that go with a denoiser, in its family's order: the `chosen` files, what the denoiser's own file holds, and
    of those `offered` what fits best, at most so many text encoders. Every chosen file has to be of use.

    Best is the file with the usual name. Of text encoders any other of the right kind will do, in full precision before
    fewer bits; VAEs look alike in their headers, so that of several others none is taken. Raises UserError.
    """
    family, taken = family_of(denoiser), dict[str, TakenPart]()
    wanted = family.parts_beside(next(each.width for each in denoiser.held if each.family == family.name))
    for file in [*chosen, denoiser]:
        wants = [want for want in wanted if file.part(want)]
        free = [want for want in wants if want.component not in taken]
        if wants and not free and file is not denoiser:
            raise UserError(f"{file.name!r} holds {held_in_words(file.held)}, and another chosen file does too. Choose one "
                            "of them.")
        taken |= {want.component: TakenPart(want, file, file is not denoiser) for want in free}
    for want in wanted:
        if want.component not in taken and (want.is_vae or text_encoders):
            file = _best(want, offered, family)
            taken[want.component] = TakenPart(want, file, False)
            text_encoders -= not want.is_vae and file is not None
        if want.required and (want.component not in taken or taken[want.component].file is None):
            raise missing_part(denoiser.name, want)
    return tuple(taken.get(want.component, TakenPart(want, None, False)) for want in wanted)


def _best(want: WantedPart, offered: Iterable[Candidate], family: Family) -> Candidate | None:
    fits = {file: part for file in offered if (part := file.part(want))}
    usual = _stems(want)
    named = [file for file in fits if file.stem in usual]
    if named:
        return min(named, key=lambda file: (usual.index(file.stem), file.name))
    if not want.is_vae:
        return min(fits, key=lambda file: (_rounding(fits[file].storage), file.name), default=None)
    of_others = {stem for each in FAMILIES.values() for other in each.separate_parts if other.is_vae
                 for stem in _stems(other)}
    rest = sorted(file.name for file in fits if file.stem not in of_others)
    if len(rest) > 1:
        raise UserError(f"Several files in {want.folder} may be the VAE of {family.title}: {', '.join(rest[:4])}. Choose "
                        f"the one that belongs to this model (people usually have it as {' or '.join(want.usual)}).")
    return next((file for file in fits if file.name in rest), None)


def _stems(want: WantedPart) -> list[str]:
    return [PurePath(name).stem.lower() for name in want.usual]


def _rounding(storage: str) -> int:
    return 0 if is_full(storage) else 1 + (SMALLER.index(storage) if storage in SMALLER else len(SMALLER))
