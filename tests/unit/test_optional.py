"""The table of optional packages: what is said without each, that each works when it is there, and where people read it."""
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from finetune.trainers import optional_packages
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.run_folder import open_run
from support.running import losses_of, training_of

ROOT = Path(__file__).resolve().parents[2]
WANTS = {
    "bitsandbytes": {"optimizer": specs.OptimizerSpec(name="adamw_8bit")},
    "lion-pytorch": {"optimizer": specs.OptimizerSpec(name="lion")},
    "prodigyopt": {"optimizer": specs.OptimizerSpec(name="prodigy", learning_rate=1.0)},
    "tensorboard": {"validation": specs.ValidationSpec(tensorboard=True)},
}
SAID = {
    "bitsandbytes": "The optimizer adamw_8bit needs the Python package bitsandbytes, which is not installed. Install it "
                    "with the Python that runs ComfyUI and start ComfyUI again, or choose adamw.",
    "lion-pytorch": "The optimizer lion needs the Python package lion-pytorch, which is not installed. Install it with the "
                    "Python that runs ComfyUI and start ComfyUI again, or choose adamw.",
    "prodigyopt": "The optimizer prodigy needs the Python package prodigyopt, which is not installed. Install it with the "
                  "Python that runs ComfyUI and start ComfyUI again, or choose adamw.",
    "tensorboard": "Writing TensorBoard logs needs the Python package tensorboard, which is not installed. Install it with "
                   "the Python that runs ComfyUI and start ComfyUI again, or switch tensorboard off.",
}
PACKAGES = {package.name: package for package in optional_packages.OPTIONAL}
OTHERS = {"onnxruntime"}
"""What no training asks for; the tests of captioning hide it."""


@pytest.fixture
def hidden(monkeypatch):
    """Hide a module from `find_spec`, as if it were not installed."""
    def hide(module):
        find = importlib.util.find_spec
        monkeypatch.setattr(optional_packages, "find_spec", lambda name: None if name == module else find(name))
        monkeypatch.setitem(sys.modules, module, None)

    return hide


def test_every_package_has_its_row():
    assert PACKAGES.keys() - OTHERS == WANTS.keys() == SAID.keys() and PACKAGES.keys() > OTHERS


@pytest.mark.parametrize("name", WANTS)
def test_without_it_the_sentence_comes_before_the_work(name, tiny_bases, make_spec, hidden):
    hidden(PACKAGES[name].module)
    spec = make_spec(tiny_bases["sd1"], **WANTS[name])
    with pytest.raises(UserError) as problem:
        optional_packages.require_packages(spec)
    assert str(problem.value) == SAID[name]
    with pytest.raises(UserError) as problem:
        training_of(spec)  # nothing is loaded yet: the run has no event
    assert str(problem.value) == SAID[name] and not list(open_run(spec).events())
    losses_of(make_spec(tiny_bases["sd1"], name="other", training=specs.TrainingSpec(
        steps=1, batch_size=2, resolution=64)))  # nobody else misses it


@pytest.mark.parametrize("name", WANTS)
def test_with_it_training_works(name, tiny_bases, make_spec):
    losses, run = losses_of(make_spec(tiny_bases["sd1"], **WANTS[name], training=specs.TrainingSpec(
        steps=3, batch_size=2, resolution=64)))
    assert len(losses) == 3 and run.report.change_norm > 0


def test_all_missing_packages_are_named_at_once(tiny_bases, make_spec, monkeypatch):
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None)
    with pytest.raises(UserError) as problem:
        optional_packages.require_packages(make_spec(tiny_bases["sd1"], **WANTS["lion-pytorch"], **WANTS["tensorboard"]))
    assert str(problem.value) == f"{SAID['lion-pytorch']}\n{SAID['tensorboard']}"
    optional_packages.require_packages(make_spec(tiny_bases["sd1"]))


def test_the_help_page_shows_the_table():
    page = (ROOT / "web" / "docs" / "FineTuneOptimizer.md").read_text(encoding="utf-8")
    assert optional_packages.markdown_table() in page


def test_every_package_is_an_extra_and_installed_for_the_tests():
    if sys.version_info < (3, 11):
        import tomli as tomllib
    else:
        import tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name(each) for group in project["optional-dependencies"].values() for each in group}
    tests = {name(line) for line in (ROOT / "tests" / "requirements.txt").read_text(encoding="utf-8").split()}
    assert PACKAGES.keys() <= extras and PACKAGES.keys() <= tests


def name(requirement: str) -> str:
    return re.split(r"[<>=!~ ]", requirement)[0]
