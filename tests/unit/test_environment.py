"""The decisions of `scripts/environment.py` and `scripts/installation.py` that need no network."""
import environment
import installation
import pytest
from environment import Environment
from failure import Failure

HOST_REQUIREMENTS = """\
comfyui-frontend-package==1.32.9
comfyui_workflow_templates==0.7.25
torch
torchsde
torchvision
torchaudio
numpy>=1.25.0

#non essential dependencies:
kornia>=0.7.1  # a comment
spandrel
--extra-index-url somewhere
pydantic~=2.0
"""


@pytest.fixture
def prepared(tmp_path, monkeypatch) -> Environment:
    """A folder that looks like a finished installation."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("FINETUNE_VENV", raising=False)
    described = environment.describe(tmp_path)
    for file in (described.python, described.comfyui / "main.py", described.comfyui / "requirements.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (tmp_path / "requirements.txt").write_text("peft\n")
    stamp(described)
    return described


def stamp(described):
    environment.stamp_file(described, "base").write_text(environment.fingerprint(environment.base_inputs(described)))


def is_current(described):
    return environment.is_current(described, "base", environment.base_inputs(described))


def test_host_requirements_are_filtered():
    normal, alone = environment.split_host_requirements(HOST_REQUIREMENTS)
    assert normal == ["comfyui-frontend-package==1.32.9", "torchsde", "numpy>=1.25.0", "kornia>=0.7.1", "pydantic~=2.0"]
    assert alone == ["spandrel"]


def test_stamp_of_unchanged_inputs_is_current(prepared):
    assert is_current(prepared)


def test_changed_requirements_of_pack_or_host_are_not_current(prepared):
    for changed in (prepared.root / "requirements.txt", prepared.comfyui / "requirements.txt"):
        stamp(prepared)
        changed.write_text("something-new\n")
        assert not is_current(prepared)


def test_interrupted_installation_is_not_current(prepared):
    environment.stamp_file(prepared, "base").unlink()
    assert not is_current(prepared)


def test_environment_without_its_python_is_not_current(prepared):
    prepared.python.unlink()
    assert not is_current(prepared)


def test_text_moved_between_inputs_changes_the_fingerprint():
    assert environment.fingerprint(["ab", "c"]) != environment.fingerprint(["a", "bc"])


def test_comfyui_path_selects_a_checkout(tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text("")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert environment.describe().comfyui == tmp_path.resolve()


def test_comfyui_path_without_comfyui_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(Failure, match="no main.py"):
        environment.describe()


def test_another_virtual_environment_can_be_named(tmp_path, monkeypatch):
    monkeypatch.delenv("FINETUNE_VENV", raising=False)
    assert environment.describe(tmp_path).virtual_environment == tmp_path / ".venv"
    monkeypatch.setenv("FINETUNE_VENV", str(tmp_path / "newer"))
    described = environment.describe(tmp_path)
    assert described.virtual_environment == tmp_path / "newer"
    assert described.python == installation.venv_python(tmp_path / "newer")


def test_cpu_build_is_tried_first_only_without_a_gpu(monkeypatch):
    monkeypatch.setattr(environment.sys, "platform", "linux")
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: False)
    assert environment.torch_candidates() == [f"torch=={environment.TORCH}+cpu", f"torch=={environment.TORCH}"]
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: True)
    assert environment.torch_candidates() == [f"torch=={environment.TORCH}"]


def test_half_installed_packages_are_forgotten(tmp_path):
    for name, record in (("good", "good-1.dist-info/INSTALLER,,\n"), ("cut", "cut.py,,\n"), ("cutter", None)):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        if record is not None:
            (folder / "RECORD").write_text(record)
    (tmp_path / "~orch").mkdir()
    assert sorted(installation.remove_half_installed(tmp_path)) == ["cut-1.dist-info", "cutter-1.dist-info", "~orch"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["good-1.dist-info"]


def test_first_available_requirement_is_installed(tmp_path, monkeypatch):
    installer = installation.Installer(tmp_path / "venv", tmp_path / "install.log")
    asked = []

    def install(what, requirement):
        asked.append(requirement)
        if "+cpu" in requirement:
            installer.log.write_text("ERROR: No matching distribution found for torch\n")
            raise Failure("no")

    monkeypatch.setattr(installer, "install", install)
    installer.install_first("torch", "torch==2+cpu", "torch==2")
    assert asked == ["torch==2+cpu", "torch==2"]


def test_failed_command_is_a_sentence_with_the_log(tmp_path):
    installer = installation.Installer(tmp_path / "venv", tmp_path / "install.log")
    command = [environment.sys.executable, "-c", "print('ERROR: the disk is full.'); raise SystemExit(1)"]
    with pytest.raises(Failure, match=r"Installing x did not work \(the disk is full\).*install\.log"):
        installer.run("Installing x", command)
