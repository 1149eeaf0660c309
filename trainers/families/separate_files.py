"""The parts of a model that lie in files of their own, as ComfyUI's loaders take them: what a family wants, and which of the
files beside its denoiser holds it."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..artifacts.tensor_header import read_header
from ..errors import UserError
from ..spec import ComponentSpec
from .component_recognition import RELEASED, TITLES, VAES, FoundComponent, Kind, components_of
from .model_parts import ModelSource


@dataclass(frozen=True)
class WantedPart:
    """A component beside the denoiser that models of a family are made of."""

    component: str
    """Its name in specs, for example "text_encoder_2"."""
    kind: Kind
    usual: tuple[str, ...]
    """Names of the files in which people have it, the best first."""
    channels: int = 0
    """Of a VAE's latents; 0: any."""
    width: int = 0
    """Of what a text encoder says; 0: any."""
    required: bool = True

    @property
    def title(self) -> str:
        name = RELEASED.get((self.kind, self.width), TITLES[self.kind])
        return f"{name} with {self.channels} latent channels" if self.channels else name

    @property
    def is_vae(self) -> bool:
        return self.kind in VAES

    @property
    def folder(self) -> str:
        return "models/vae" if self.is_vae else "models/text_encoders"

    def fits(self, found: FoundComponent) -> bool:
        wanted = self.channels or self.width
        return found.kind == self.kind and (not wanted or found.width == wanted)


def separate_components(source: ModelSource, title: str, wanted: Sequence[WantedPart]) -> dict[str, ComponentSpec]:
    """Where the wanted parts are among the files beside a denoiser, by component. `title` is that of the family.

    Raises UserError for a file that holds none of them, and for a part that is in none of the files.
    """
    found: dict[str, ComponentSpec] = {}
    for path in source.others:
        held = components_of(read_header(path)[0])
        parts = [(want, each) for want in wanted for each in held if want.fits(each)]
        if not parts:
            raise UserError(f"{path.name!r} holds {held_in_words(held)}, and {title} takes {_listed(wanted)}. Choose the "
                            "files that belong to this denoiser.")
        for want, each in parts:
            if each.kind == "vae" and each.layout == "diffusers":
                raise UserError(f"{path.name!r} holds a VAE under the names that diffusers gives its layers, which is read "
                                f"in diffusers folders only. Choose the VAE as ComfyUI has it: {want.usual[0]}.")
            found.setdefault(want.component, ComponentSpec(name=want.component, path=str(path), prefix=each.prefix))
    for want in wanted:
        if want.required and want.component not in found:
            raise missing_part(source.name, want)
    return found


def missing_part(name: str, want: WantedPart) -> UserError:
    """What is said where a model lacks a part."""
    return UserError(f"{name!r} lacks its {want.title}: no file beside it holds one. Put it into {want.folder} (people "
                     f"usually have it as {' or '.join(want.usual)}) and choose it.")


def held_in_words(held: Iterable[FoundComponent]) -> str:
    """What a file holds."""
    return " and ".join(f"a {each.title}" for each in held) or "no part of a model that is known here"


def _listed(wanted: Sequence[WantedPart]) -> str:
    return ", ".join(f"a {want.title}" for want in wanted)
