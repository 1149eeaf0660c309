"""What all tests share.

The pack is imported as the package `finetune`, and the repository's root stays off `sys.path`: its `nodes` package
would hide ComfyUI's module of that name.
"""
import gc
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def _import_pack():
    spec = importlib.util.spec_from_file_location(
        "finetune", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["finetune"] = module
    spec.loader.exec_module(module)


_import_pack()


def pytest_collection_finish():
    """Every run of the engine collects garbage at its end. What tests have imported by now is none: with it each collection
    would take 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def forgotten_accelerator():
    """What a test set up in accelerate's global state is gone afterwards, in whatever order tests run."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="session")
def preloaded():
    """A launcher of workers that have the libraries in memory already."""
    from support.preloaded import preloaded

    with preloaded() as launcher:
        yield launcher


@pytest.fixture
def quick_workers(preloaded, monkeypatch):
    """Workers of a test start without importing anything."""
    from support.preloaded import quick_workers_of

    for name, value in quick_workers_of(preloaded).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory):
    """family → recognized diffusers folder of a tiny random model."""
    from finetune.trainers.families.recognition import recognize
    from support.tiny_models import MadeWhenAsked, make_folder

    root = tmp_path_factory.mktemp("tiny")
    return MadeWhenAsked(lambda family: recognize(str(make_folder(family, root / family)), f"tiny {family}"))


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A dataset of four plain images."""
    from finetune.trainers.data.manifest import scan_folder
    from support import tiny

    return scan_folder(str(tiny.make_images(tmp_path_factory.mktemp("squares"))), "squares")


@pytest.fixture
def make_spec(tmp_path, squares):
    """Build a small run spec; keyword arguments replace its parts."""
    from finetune.trainers import spec as specs

    def build(base, **parts):
        fields = dict(
            name="run", base=base, dataset=squares, method=specs.LoraSpec(rank=2, alpha=2),
            optimizer=specs.OptimizerSpec(learning_rate=1e-2),
            training=specs.TrainingSpec(steps=6, batch_size=2, resolution=64),
            checkpoints=specs.CheckpointSpec(every=0),
            folders=specs.FolderSpec(runs=str(tmp_path / "runs"), caches=str(tmp_path / "caches")), device="cpu",
        )
        return specs.RunSpec(**{**fields, **parts})

    return build
