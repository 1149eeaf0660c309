"""Broken LoRA files in the stack, the inspector and the search by keyword, with ComfyUI's own code behind them."""
import json
import os
import subprocess
import sys

from environment import ROOT


def test_broken_files_are_sentences(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.header_fuzz", "--tries", "150", "--seed", "2", "--no-results",
         "--readers", "stack", "inspector", "keywords"],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    found = json.loads(result.stdout.strip().splitlines()[-1])["results"]
    assert [each["value"] for each in found] == [0, 0, 0], result.stdout
