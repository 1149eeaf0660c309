"""A real ComfyUI server for all tests of this folder. `COMFYUI_PATH` selects which ComfyUI."""
import json
import signal
import subprocess
from pathlib import Path

import pytest
from environment import describe
from failure import interrupt_on_signal
from host_server import HostServer
from support.preloaded import quick_workers_of


@pytest.fixture(scope="session")
def host(tmp_path_factory, preloaded):
    """A running server with the pack, whose files are all in a temporary folder. Its workers start without importing
    anything."""
    signal.signal(signal.SIGTERM, interrupt_on_signal)
    with HostServer(describe(), tmp_path_factory.mktemp("comfyui"), variables=quick_workers_of(preloaded)) as server:
        yield server


@pytest.fixture(scope="session")
def found_by(preloaded, tmp_path_factory):
    """What a script of this folder finds in a process of its own: ComfyUI's modules and those of the tests do not fit into
    one. Its arguments are ComfyUI's folder and one for its files."""
    def run(script: str, folder: Path | None = None, unsaid: str = "") -> dict:
        folder = folder or tmp_path_factory.mktemp(script)
        command = [*preloaded, str(Path(__file__).with_name(f"{script}.py")), str(describe().comfyui), str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0 and not (unsaid and unsaid in result.stderr), result.stderr[-4000:]
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return run


@pytest.fixture
def log(host):
    """What the server has written since the test began, as a function."""
    start = host.log.stat().st_size
    return lambda: host.log.read_bytes()[start:].decode("utf-8", errors="replace")
