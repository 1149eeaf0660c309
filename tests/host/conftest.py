"""A real ComfyUI server for all tests of this folder. `COMFYUI_PATH` selects which ComfyUI."""
import signal

import pytest
from environment import describe
from failure import interrupt_on_signal
from host_server import HostServer


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """A running server with the pack, whose files are all in a temporary folder."""
    signal.signal(signal.SIGTERM, interrupt_on_signal)
    with HostServer(describe(), tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture
def log(host):
    """What the server has written since the test began, as a function."""
    start = host.log.stat().st_size
    return lambda: host.log.read_bytes()[start:].decode("utf-8", errors="replace")
