"""Where a stop breaks work off, where it waits, and that it is heard wherever the main thread is. Each in a process of its
own: signals belong to the whole process."""
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PREFACE = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from trainers.errors import Cancelled
from trainers.stopping import StopRequest, breakable, unbroken
stop = StopRequest(listen=True, on_request=lambda: print("heard", flush=True))
print("ready", flush=True)
"""
WORK = {
    "computing": "while True: sum(range(1000))",
    "sleeping": "time.sleep(60)",
    "waiting for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "waiting for a thread": """
thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
thread.start()
thread.join()
""",
    "swallowing errors": """
while True:
    try:
        sum(range(1000))
    except Exception:
        pass
""",
    "swallowing everything once": """
try:
    time.sleep(60)
except BaseException:
    time.sleep(60)
""",
    "inside a nested region": "with unbroken(), breakable(): time.sleep(60)",
    "writing events": """
while True:
    with unbroken():
        sum(range(1000))
""",
}


def run(script: str, cancel: str = "cancel\n", after: str = "ready") -> list[str]:
    """What a script printed; it is cancelled after it printed `after`."""
    process = subprocess.Popen([sys.executable, "-c", PREFACE + script, str(ROOT)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    longest = threading.Timer(60, process.kill)  # what is not broken off would go on for ever
    longest.start()
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1] == after:
            time.sleep(0.05)  # so that it is in the midst of its work
            process.stdin.write(cancel)
            process.stdin.flush()
    longest.cancel()
    assert process.wait(timeout=30) == 0
    process.stdin.close()
    return lines


@pytest.mark.parametrize("name", WORK)
def test_a_stop_breaks_off(name):
    body = "".join(f"        {line}\n" for line in WORK[name].strip().splitlines())
    lines = run(f"try:\n    with breakable():\n{body}except Cancelled:\n    print('broken off', flush=True)")
    assert sorted(lines) == ["broken off", "heard", "ready"]


def test_it_waits_outside_and_in_unbroken_regions_and_is_not_lost():
    lines = run("""
def wait():
    while not stop():
        time.sleep(0.01)
    time.sleep(0.3)

wait()
with unbroken():
    time.sleep(0.3)
try:
    with breakable():
        with unbroken():
            time.sleep(0.3)
            print("whole", flush=True)
        time.sleep(60)
except Cancelled:
    time.sleep(0.5)
    print("put in order", flush=True)
with breakable(False):
    time.sleep(0.3)
print("saved", flush=True)
""")
    assert lines == ["ready", "heard", "whole", "put in order", "saved"]


def test_other_threads_are_never_broken_off():
    lines = run("""
def work():
    with breakable():
        time.sleep(1)
    print("whole", flush=True)

thread = threading.Thread(target=work)
thread.start()
thread.join()
""")
    assert lines == ["ready", "heard", "whole"]


def test_nothing_happens_without_a_request():
    code = PREFACE.replace("stop = StopRequest(listen=True, on_request=lambda: print(\"heard\", flush=True))\n", "") + (
        "with breakable(), unbroken(): print('whole')")
    assert subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True).stdout.split() == [
        "ready", "whole"]
