"""`accelerate launch` with two processes trains as one process does: the batch size counts all of them."""
import os
import subprocess
import sys

import pytest
import tiny
from finetune.trainers import spec as specs
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.run import SCRIPT
from finetune.trainers.runs import open_run

LAUNCH = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no"]


def train(spec, path, launch) -> list[float]:
    path.write_text(spec.model_dump_json())
    result = subprocess.run([sys.executable, *launch, str(SCRIPT), "train", str(path)], capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    return open_run(spec).losses()


@pytest.mark.parametrize("method, dropout", [
    (specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3), 0.0),
    (specs.TextualInversionSpec(token="square"), 0.5),  # some batches of a process do not hold the word
], ids=["LoRA", "new word"])
def test_two_processes_equal_one(method, dropout, tiny_bases, make_spec, tmp_path):
    dataset = scan_folder(str(tiny.make_pictures(tmp_path / "eight", 8)), "eight")
    parts = dict(
        dataset=dataset, method=method,
        training=specs.TrainingSpec(steps=4, batch_size=4, accumulation=2, resolution=64, caption_dropout=dropout),
    )
    one = train(make_spec(tiny_bases["sdxl"], name="one", **parts), tmp_path / "one.json", [])
    two = train(make_spec(tiny_bases["sdxl"], name="two", **parts), tmp_path / "two.json", LAUNCH)
    assert len(one) == 4 and two == pytest.approx(one, abs=1e-5)
