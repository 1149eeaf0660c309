"""The pack and a real ComfyUI inside one process."""
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NAME = "finetune"


def load_pack():
    """Let the pack's parts be imported as `finetune.…`, the name under which the tests' helpers look for them."""
    pack = sys.modules.setdefault(NAME, ModuleType(NAME))
    pack.__path__ = [str(ROOT)]


def use_scripts():
    """Let `environment`, `host_server` and the other scripts be imported."""
    scripts = str(ROOT / "scripts")
    if scripts not in sys.path:
        sys.path.append(scripts)


def comfyui_folder() -> Path | None:
    """Where ComfyUI is, or None before `scripts/demo.py` or `scripts/test.py` has got one."""
    use_scripts()
    from environment import describe

    folder = describe().comfyui
    return folder if (folder / "main.py").is_file() else None


def become_host(comfyui: Path):
    """Let ComfyUI's modules be imported as in its own process; a CPU where torch sees no accelerator."""
    # The repository's own `nodes` package would hide ComfyUI's module of that name.
    sys.path[:] = [str(comfyui), *(path for path in sys.path if path not in ("", str(ROOT)))]
    import comfy.cli_args
    import torch
    import utils  # noqa: F401, ComfyUI's own; later its nodes put a folder with another module of that name in front

    comfy.cli_args.args.cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
