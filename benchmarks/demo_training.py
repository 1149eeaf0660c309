"""Training on a demo base as the benchmarks do it: the engine's own code path, on OpenMoji or on a control.

    python -m benchmarks.demo_training SPEC.json      trains it in a process of its own, and reports memory and time
"""
import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from trainers import spec as specs
from trainers.data.manifest import scan_folder
from trainers.families.recognition import recognize
from trainers.files import read_json, write_json
from trainers.run_folder import Run, open_run

from .pack import ROOT

DEMO_BASES = {"sd": ROOT / "demo_base", "flow": ROOT / "demo_flow_base" / "demo_flow_base.safetensors"}
DATA = {"openmoji": ROOT / "example_datasets" / "openmoji", "control": ROOT / "tests" / "data" / "noto_control"}
"""What is to be learned; and images of the base's own style under the same captions, from which it must not be."""
HELD_OUT = ROOT / "tests" / "data" / "openmoji_heldout"


@dataclass(frozen=True)
class Trained:
    """A finished run with what it cost: `peak` is bytes of main memory above the idle process."""

    run: Run
    report: dict
    trainable: int
    seconds_per_step: float
    peak: int


def demo_spec(name: str, data: str, method, learning_rate: float, folder: Path, *, steps: int, batch_size: int = 16,
              seed: int = 0, trigger: str = "", base: str = "sd", **parts) -> specs.RunSpec:
    """The settings of the example workflows, with another method."""
    return specs.RunSpec(
        name=name, base=recognize(str(DEMO_BASES[base]), DEMO_BASES[base].stem),
        dataset=scan_folder(str(DATA[data]), data, trigger), method=method,
        optimizer=specs.OptimizerSpec(learning_rate=learning_rate),
        schedule=specs.ScheduleSpec(name="cosine", warmup_steps=min(10, steps // 3)),
        training=specs.TrainingSpec(steps=steps, batch_size=batch_size, resolution=64, caption_dropout=0.1, seed=seed),
        checkpoints=specs.CheckpointSpec(every=0),
        folders=specs.FolderSpec(runs=str(folder / "runs"), caches=str(folder / "caches")), device="cpu", **parts,
    )


def train(spec: specs.RunSpec) -> Trained:
    """Train in a child process, so that its memory is its own. A run that is there already is not trained again."""
    run = open_run(spec)
    costs = read_json(run.folder / "costs.json")
    if run.report and costs:
        return Trained(run, run.report, **costs)
    result = subprocess.run([sys.executable, "-m", f"{__package__}.demo_training", str(run.spec_path)], cwd=ROOT,
                            capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"training {spec.name} failed:\n{result.stderr[-3000:]}")
    costs = json.loads(result.stdout.splitlines()[-1])
    write_json(run.folder / "costs.json", costs)
    return Trained(run, run.report, **costs)


def main(path: str):
    from trainers.training.run import train_run

    from .measuring import peak_resident

    idle, times, facts = peak_resident(), [], {}
    spec = specs.RunSpec.model_validate_json(Path(path).read_bytes())

    def emit(event):
        if event.event == "model":
            facts["trainable"] = event.trainable
        if event.event == "step":
            times.append(event.seconds_per_step * (event.step))

    train_run(spec, Run(Path(path).parent), emit)
    seconds = [after - before for before, after in itertools.pairwise(times)]
    print(json.dumps({**facts, "seconds_per_step": statistics.median(seconds), "peak": peak_resident() - idle}))


if __name__ == "__main__":
    main(sys.argv[1])
