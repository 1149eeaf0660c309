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


def train(spec, path, launch):
    path.write_text(spec.model_dump_json())
    result = subprocess.run([sys.executable, *launch, str(SCRIPT), "train", str(path)], capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    return open_run(spec)


def test_two_processes_equal_one(tiny_bases, make_spec, tmp_path):
    dataset = scan_folder(str(tiny.make_pictures(tmp_path / "eight", 8)), "eight")
    parts = dict(
        dataset=dataset, method=specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3),
        training=specs.TrainingSpec(steps=4, batch_size=4, accumulation=2, resolution=64),
        validation=specs.ValidationSpec(share=0.5, every=2), checkpoints=specs.CheckpointSpec(minutes=1e-6),
    )
    one = train(make_spec(tiny_bases["sdxl"], name="one", **parts), tmp_path / "one.json", [])
    two = train(make_spec(tiny_bases["sdxl"], name="two", **parts), tmp_path / "two.json", LAUNCH)
    assert len(one.losses()) == 4 and two.losses() == pytest.approx(one.losses(), abs=1e-5)
    validation = one.curve("validation")
    assert list(validation) == [0, 2, 4] and two.curve("validation") == pytest.approx(validation, abs=1e-5)
    assert one.checkpoints() == two.checkpoints() == [2, 3]
