"""Python packages that are not required: what each adds, and what is said without it. The only list of them."""
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from .errors import UserError
from .spec import RunSpec
from .spec.captioning import CaptioningSpec
from .spec.part import Part


@dataclass(frozen=True)
class OptionalPackage:
    """`name` on the package index and `module` in Python; `adds` begins the sentence that is said without it."""

    name: str
    module: str
    adds: str
    instead: str
    wanted: Callable[[Part], bool]
    """Whether a spec asks for it: of a run, or of another task."""

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None

    @property
    def message(self) -> str:
        return (f"{self.adds} needs the Python package {self.name}, which is not installed. Install it with the Python that "
                f"runs ComfyUI and start ComfyUI again, or {self.instead}.")


def _optimizer(name: str) -> Callable[[Part], bool]:
    return lambda spec: isinstance(spec, RunSpec) and spec.optimizer.name == name


OPTIONAL = (
    OptionalPackage("bitsandbytes", "bitsandbytes", "The optimizer adamw_8bit", "choose adamw", _optimizer("adamw_8bit")),
    OptionalPackage("lion-pytorch", "lion_pytorch", "The optimizer lion", "choose adamw", _optimizer("lion")),
    OptionalPackage("prodigyopt", "prodigyopt", "The optimizer prodigy", "choose adamw", _optimizer("prodigy")),
    OptionalPackage("tensorboard", "tensorboard", "Writing TensorBoard logs", "switch tensorboard off",
                    lambda spec: isinstance(spec, RunSpec) and spec.validation.tensorboard),
    OptionalPackage("onnxruntime", "onnxruntime", "Tag Images", "use another captioner",
                    lambda spec: isinstance(spec, CaptioningSpec) and spec.model.kind == "tagger"),
)


def require_packages(spec: Part):
    """Raise UserError with a line for every package that the spec asks for and that is not installed. Imports none."""
    missing = [package.message for package in OPTIONAL if package.wanted(spec) and not package.installed]
    if missing:
        raise UserError("\n".join(missing))


def require_modules(what: str, **packages: str):
    """Raise UserError when a module is missing; `packages` are the modules' names and those on the package index."""
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"{what} needs the Python packages {' and '.join(missing)}, which are not installed. Install them "
                        "with the Python that runs ComfyUI and start ComfyUI again.")


def markdown_table() -> str:
    """The list as the help page shows it."""
    rows = [f"| {package.name} | {package.adds} | {package.message} |" for package in OPTIONAL]
    return "\n".join(["| Package | What it adds | What is said without it |", "|---|---|---|", *rows])
