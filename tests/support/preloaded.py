"""Scripts without seconds of imports: run by processes that are forked from one with the libraries in memory.

    python preloaded.py serve NUMBER               that process; it ends with its standard input
    python preloaded.py run SOCKET SCRIPT ARG ...  stands in a script's place: lends it its own standard streams and
                                                   environment, and ends as it does

What a script does, and the pipes that it talks through, are as ever; only the start of its interpreter is spared. Tests of
that start do without.
"""
import json
import os
import runpy
import select
import shlex
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    "trainers.__main__", "trainers.training.run", "trainers.sampling.previews", "trainers.sampling.class_images",
    "trainers.captioning.work", "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.schedulers.scheduling_dpmsolver_multistep", "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip", "torch._dynamo")


@contextmanager
def preloaded() -> Iterator[list[str]]:
    """The beginning of a command line, to stand before a script. Returns at once; the first script waits for the imports.
    Where systems' libraries do not bear a fork, Python itself."""
    import subprocess
    import tempfile

    if sys.platform != "linux":
        yield [sys.executable]
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "socket")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen(64)
            server = subprocess.Popen([sys.executable, __file__, "serve", str(listening.fileno())], stdin=subprocess.PIPE,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[listening.fileno()])
        try:
            yield [sys.executable, "-S", __file__, "run", path]
        finally:
            server.stdin.close()
            server.wait()


def quick_workers_of(launcher: Sequence[str]) -> dict[str, str]:
    """Variables of an environment in which the pack starts its workers by `preloaded`."""
    return {"FINETUNE_LAUNCHER": shlex.join(launcher)}


# ---- in a script's place ---------------------------------------------------------------------------------------------

def run(path: str, arguments: list[str]) -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    message = json.dumps({"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    socket.send_fds(connection, [b"*"], [0, 1, 2])
    connection.sendall(len(message).to_bytes(8, "big") + message)
    script = int.from_bytes(_received(connection, 8), "big")
    assert script, "what was to be imported could not be"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(script, number))
    code = _received(connection, 8)
    connection.recv(1)  # until it has ended
    if not code:
        os.kill(os.getpid(), signal.SIGKILL)
    return int.from_bytes(code, "big")


def _received(connection: socket.socket, size: int) -> bytes:
    """b"" when the other side has ended."""
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            return b""
        found += part
    return found


# ---- where scripts come from -----------------------------------------------------------------------------------------

def serve(number: int):
    """On a socket that listens, by the number of its file."""
    import gc
    from importlib import import_module

    listening = socket.socket(fileno=number)
    sys.path[0] = str(ROOT)
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for scripts
    while True:
        ready, _, _ = select.select([listening, 0], [], [])
        if 0 in ready:
            return
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            work(connection)
        connection.close()


def work(connection: socket.socket):
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(_received(connection, int.from_bytes(_received(connection, 8), "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv = asked["arguments"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    connection.sendall(os.getpid().to_bytes(8, "big"))
    threading.Thread(target=_end_with, args=[connection], daemon=True).start()
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    connection.sendall(code.to_bytes(8, "big"))
    sys.exit(code)


def _end_with(connection: socket.socket):
    """Whoever kills what stands in its place kills the script."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    what, place, *others = sys.argv[1:]
    sys.exit(serve(int(place)) if what == "serve" else run(place, others))
