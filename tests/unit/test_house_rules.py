"""The rules of the house: who imports whom, how long files are, what the pack may not do."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = [ROOT / "__init__.py", *sorted((ROOT / "nodes").rglob("*.py")), *sorted((ROOT / "trainers").rglob("*.py"))]
FAMILY_FILES = {"stable_diffusion", "sdxl", "latent_diffusion", "loading"}
METHOD_FILES = {path.stem for path in (ROOT / "trainers" / "methods").glob("*.py")} - {"__init__", "protocol"}


def imports_of(path: Path) -> set[str]:
    """Absolute dotted names of everything a file imports, those inside functions too."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def rooms(*patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


HOST = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "execution", "nodes")
RULES = [
    (rooms("trainers/**/*.py"), [f"^{name}(\\.|$)" for name in HOST], "the engine never imports ComfyUI"),
    (rooms("trainers/objectives.py", "trainers/noise.py", "trainers/losses.py", "trainers/data/buckets.py",
           "trainers/artifacts/*.py"),
     ["^diffusers", "^transformers", "^peft", "^accelerate"], "pure numbers and key maps"),
    (rooms("trainers/families/*.py"), [r"^trainers\.methods", r"^trainers\.loop"], "families know no methods"),
    (rooms("trainers/methods/*.py"),
     [r"^trainers\.loop", r"^trainers\.data", rf"^trainers\.families\.({'|'.join(FAMILY_FILES)})"],
     "methods know no concrete families"),
    (rooms("trainers/loop.py"),
     [rf"^trainers\.families\.({'|'.join(FAMILY_FILES)})", rf"^trainers\.methods\.({'|'.join(METHOD_FILES)})",
      "^PIL", "^pathlib", r"^trainers\.files", r"^trainers\.runs"], "the loop knows no family, method or file"),
    (rooms("nodes/*.py"),
     [r"^comfy(\.|$)", "^folder_paths", "^server", "^execution", "^diffusers", "^transformers", "^peft"],
     "only nodes/host/ touches ComfyUI's internals"),
]


@pytest.mark.parametrize("files, forbidden, why", RULES, ids=[rule[2] for rule in RULES])
def test_import_rules(files, forbidden, why):
    assert files
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files for name in sorted(imports_of(path)) for pattern in forbidden if re.search(pattern, name)
    ]
    assert not broken, f"{why}: {broken}"


def test_imports_within_the_pack_are_relative():
    for path in PACK:
        if path.name == "__main__.py":
            continue  # started as a script, it has no package
        tree = ast.parse(path.read_text(encoding="utf-8"))
        absolute = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
        assert not [name for name in absolute if name.split(".")[0] in ("trainers", "nodes", "finetune")], path


def test_files_are_short_and_the_loop_shorter():
    assert len((ROOT / "trainers" / "loop.py").read_text().splitlines()) < 150
    for path in PACK + rooms("scripts/*.py", "benchmarks/*.py", "tests/**/*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_the_loop_names_no_family_and_no_method():
    text = (ROOT / "trainers" / "loop.py").read_text().lower()
    assert not re.search(r"lora|sdxl|sd1|sd2|stable|flux|dreambooth|inversion|hypernetwork|unet", text)


def test_nothing_forbidden_is_called():
    """No pickle, eval, network or installation at run time; the worker is the only child process."""
    for path in PACK:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![.\w])(eval|exec)\(|os\.system|(import|from) (pickle|urllib|requests|socket)|pip install",
                             text), path
        for line in text.splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, path
        assert "subprocess" not in text or path.name == "run.py", path


def test_the_web_side_is_short_and_trusts_no_text():
    """What comes from files reaches the page by textContent and values only, and nothing comes from elsewhere."""
    for path in rooms("web/js/**/*.js"):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert len(text.splitlines()) <= 300 and max(map(len, text.splitlines())) <= 125, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|https?://", text), path


def test_nodes_are_found_by_scanners():
    """Managers read node ids from the source: a literal in a class that names io.ComfyNode as its base."""
    ids = []
    for path in rooms("nodes/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "io.ComfyNode" for base in node.bases):
                ids += re.findall(r'node_id="(FineTune\w+)"', ast.get_source_segment(path.read_text("utf-8"), node))
    snapshot = json.loads((ROOT / "tests" / "host" / "schemas.json").read_text(encoding="utf-8"))
    assert sorted(ids) == sorted(snapshot)
    for node_id in ids:
        page = ROOT / "web" / "docs" / f"{node_id}.md"
        assert page.exists() and len(page.read_text(encoding="utf-8")) > 200, f"{node_id} needs a help page"


def test_every_node_is_listed_once():
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text(encoding="utf-8"))
    imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    listed = [name.id for node in tree.body if isinstance(node, ast.Assign) for name in node.value.elts]
    assert sorted(listed) == sorted(imported)


def test_requirements_agree():
    if sys.version_info < (3, 11):
        import tomli as tomllib
    else:
        import tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert sorted(project["dependencies"]) == sorted(listed)
    assert not [line for line in listed if line.lower().startswith("torch") or "<" in line or "==" in line]


def test_example_workflows_have_pictures():
    for path in rooms("example_workflows/*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["nodes"]
        assert path.with_suffix(".jpg").stat().st_size > 5000, f"{path.name} needs a picture of the same name"


def test_style():
    result = subprocess.run([sys.executable, "-m", "ruff", "check", str(ROOT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_without_comfyui_the_pack_imports_and_says_why(caplog):
    result = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; s = u.spec_from_file_location('pack', '__init__.py'); "
         "m = u.module_from_spec(s); s.loader.exec_module(m)"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "needs ComfyUI 0.3.75 or newer" in result.stderr
