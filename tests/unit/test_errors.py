"""What a foreign error says fits into a sentence, whatever it says."""
import re
from pathlib import Path

import pytest
from finetune.trainers import required_packages
from finetune.trainers.errors import plain_lines, reason_of

ROOT = Path(__file__).resolve().parents[2]


class Unsaid(RuntimeError):
    pass


@pytest.mark.parametrize("message, said", [
    ("", "Unsaid"),
    (" \n\t\n", "Unsaid"),
    ("\x1b[31m\x1b[0m\n", "Unsaid"),
    ("\x00\x07", "Unsaid"),
    ("\n\n  no kernel image  \nlong explanation", "no kernel image"),
    ("\x1b[1mWeights only load failed\x1b[0m. Do this", "Weights only load failed. Do this"),
    ("\x1b]0;a title\x07it\x1b(B failed\x08", "it failed"),
    ("a\ttab\u3000and a wide space", "a tab and a wide space"),
    ("\ud83d is half a character", "is half a character"),
    ("größer 猫 🐱", "größer 猫 🐱"),
])
def test_the_reason_is_one_plain_line(message, said):
    reason = reason_of(Unsaid(message))
    assert reason == said
    reason.encode("utf-8")


def test_the_reason_is_short():
    assert len(reason_of(Unsaid("x" * 1000))) == 300 and reason_of(Unsaid("x" * 1000), 20) == "x" * 20


def test_nobody_takes_a_line_of_an_error_by_himself():
    """Each of these raises IndexError where the message is empty, and lets terminal codes through."""
    for path in [*ROOT.glob("trainers/**/*.py"), *ROOT.glob("nodes/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"str\((problem|error|exception|failure)\)[^\n]*(splitlines|split\()", text), path


def test_lines_of_a_log():
    assert plain_lines("\x1b[32mone\x1b[0m\r\n\n two\x0b\n") == ["one", "two"]


def test_the_required_packages_are_those_of_the_requirements_file(tmp_path, monkeypatch):
    assert {"filelock", "torch"} & set(required_packages.requirements()) == {"filelock"}
    assert required_packages.missing_requirements() == []
    monkeypatch.setattr(required_packages, "FILE", tmp_path / "requirements.txt")
    required_packages.FILE.write_text("Pillow>=10.1\nno-such-package>=1\n")
    assert required_packages.missing_requirements() == ["no-such-package"]
