"""The rules of the house: who imports whom, how long files are, what the pack may not do."""
import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from environment import describe
from finetune.trainers import families, methods

ROOT = Path(__file__).resolve().parents[2]
PACK = [ROOT / "__init__.py", *sorted((ROOT / "nodes").rglob("*.py")), *sorted((ROOT / "trainers").rglob("*.py"))]


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


def map_of_rooms() -> tuple[list[str], set[str]]:
    """The map in trainers/__init__.py: rooms and ground-floor files from the top down, and every file that has a line."""
    floors, folders, files = [], [], set()
    for line in (ROOT / "trainers" / "__init__.py").read_text(encoding="utf-8").splitlines():
        found = re.match(r"((?: {4})+)([a-z0-9_]+(?:/|\.py)) +\S", line)
        if found:
            depth, name = len(found[1]) // 4 - 1, found[2]
            folders[depth:] = [name]
            if depth == 0:
                floors.append(name.removesuffix("/").removesuffix(".py"))
            if name.endswith(".py"):
                files.add("".join(folders))
    return floors, files


FLOORS, MAPPED = map_of_rooms()


def imported_modules(path: Path) -> set[tuple[str, ...]]:
    """Modules of the engine that a file imports, as parts of their paths below trainers/."""
    found = set()
    for name in imports_of(path):
        parts = name.split(".")[1:] if name.startswith("trainers.") else []
        while parts and not ((ROOT / "trainers").joinpath(*parts).with_suffix(".py").is_file()
                             or (ROOT / "trainers").joinpath(*parts, "__init__.py").is_file()):
            parts = parts[:-1]
        if parts:
            found.add(tuple(parts))
    return found


def test_every_file_has_a_line_in_the_map():
    there = {path.relative_to(ROOT / "trainers").as_posix() for path in rooms("trainers/**/*.py")}
    assert {name for name in there if not name.endswith("__init__.py")} == MAPPED


def test_no_room_imports_a_room_above_it():
    arrows, upward = set(), []
    for path in rooms("trainers/**/*.py"):
        own = path.relative_to(ROOT / "trainers").with_suffix("").parts[0]
        for parts in imported_modules(path) if own != "__init__" else ():
            arrows.add((own, parts[0]))
            if FLOORS.index(parts[0]) < FLOORS.index(own):
                upward.append(f"{path.relative_to(ROOT)} imports {'.'.join(parts)}")
    assert not upward and len(arrows) > 60


def test_modules_import_each_other_in_no_circle():
    """At the top of files; an import inside a function waits until it is called."""
    graph = {}
    for path in rooms("trainers/**/*.py"):
        parts = path.relative_to(ROOT / "trainers").with_suffix("").parts
        name = parts[:-1] if parts[-1] == "__init__" else parts
        graph[name] = {each for each in imported_modules(path) if each != name and each != name[:len(each)]}
    while leaves := [name for name, imported in graph.items() if not imported & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph


def test_no_file_name_stands_for_two_things():
    """A spec is named like what it describes, the file of an artifact like the method that makes it, and both halves of a
    kind of adapter alike."""
    names = Counter()
    for path in PACK:
        if path.stem not in ("__init__", "protocol") and path.parent.name not in ("spec", "artifacts", "adapters"):
            names[path.stem] += 1
    assert {name: count for name, count in names.items() if count > 1} == {}


HOST = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "execution", "nodes")
MODULES = {"families": {type(family).__module__.rpartition(".")[2] for family in families.FAMILIES.values()},
           "methods": {module for module, _ in methods.WHERE.values()}}
CONCRETE = [rf"^trainers\.{room}\.({'|'.join(sorted(modules))})(\.|$)" for room, modules in MODULES.items()]
RULES = [
    (rooms("trainers/**/*.py"), [f"^{name}(\\.|$)" for name in HOST], "the engine never imports ComfyUI"),
    (rooms("trainers/objectives/*.py", "trainers/data/images/buckets.py", "trainers/artifacts/**/*.py"),
     ["^diffusers", "^transformers", "^peft", "^accelerate"], "pure numbers and key maps"),
    (rooms("trainers/methods/*.py"), [r"^trainers\.data"], "methods know no data"),
    (rooms("trainers/training/loop.py"),
     [*CONCRETE, "^PIL", "^pathlib", r"^trainers\.files", r"^trainers\.run_folder"],
     "the loop knows no family, method or file"),
    ([path for path in rooms("nodes/**/*.py") if "host" not in path.parts],
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
    assert len((ROOT / "trainers" / "training" / "loop.py").read_text().splitlines()) < 150
    for path in PACK + rooms("scripts/*.py", "benchmarks/*.py", "tests/**/*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_the_loop_names_no_family_and_no_method():
    text = (ROOT / "trainers" / "training" / "loop.py").read_text().lower()
    assert not re.search(r"lora|sdxl|sd1|sd2|stable|flux|dreambooth|inversion|hypernetwork|unet", text)


def test_only_families_ask_which_family_it_is():
    """Names of families are words of families/, of the authority on names of layers, and of what the host calls them."""
    own = ("trainers/families/", "trainers/artifacts/layer_names/", "nodes/host/host_families.py")
    quoted = re.compile(rf"""["']({'|'.join(families.FAMILIES)})["']""")
    places = [path.relative_to(ROOT).as_posix() for path in PACK if quoted.search(path.read_text(encoding="utf-8"))]
    assert len(places) > 3 and [place for place in places if not place.startswith(own)] == []


def test_nothing_forbidden_is_called():
    """No pickle, eval, network or installation at run time; the worker is the only child process."""
    forbidden = r"(?<![.\w])(eval|exec)\(|os\.system|(import|from) (pickle|urllib|requests|socket)\b|pip install"
    for path in PACK:
        text = path.read_text(encoding="utf-8")
        assert not re.search(forbidden, text), path
        for line in text.splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, path
        assert "subprocess" not in text or path.name == "parent.py", path


def test_the_web_side_is_short_and_trusts_no_text():
    """What comes from files reaches the page by textContent and values only, and nothing comes from elsewhere."""
    for path in rooms("web/js/**/*.js"):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert len(text.splitlines()) <= 300 and max(map(len, text.splitlines())) <= 125, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|https?://", text), path


def test_nodes_are_found_by_scanners():
    """Managers read node ids from the source: a literal in a class that names io.ComfyNode as its base."""
    ids = []
    for path in rooms("nodes/**/*.py"):
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


def test_the_registry_finds_what_it_needs():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    owner = re.search(r'PublisherId = "([\w-]+)"', text)[1]
    assert {each for each in re.findall(r"github(?:usercontent)?\.com/([\w-]+)/", text)} == {owner}
    for name in ("Icon", "Banner"):
        address = re.search(rf'{name} = "https://raw[^"]*/main/([^"]+)"', text)[1]
        width, height = map(int, re.search(r'width="(\d+)" height="(\d+)"', (ROOT / address).read_text("utf-8")).groups())
        assert width == height <= 400 or (name == "Banner" and width * 9 == height * 21), name


def test_templates_name_their_pack_and_end_in_no_core_chart():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name, version = (re.search(rf'^{key} = "([^"]+)"', text, re.M)[1] for key in ("name", "version"))
    for path in rooms("example_workflows/*.json"):
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        assert not any(node["type"] == "LossGraphNode" for node in nodes), path
        for node in nodes:
            if node["type"].startswith("FineTune"):
                assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == (name, version), path


def test_example_workflows_have_images():
    for path in rooms("example_workflows/*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["nodes"]
        assert path.with_suffix(".jpg").stat().st_size > 5000, f"{path.name} needs an image of the same name"


def test_style():
    result = subprocess.run([sys.executable, "-m", "ruff", "check", str(ROOT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_types(tmp_path):
    """pyright's basic rules, with the packages of this environment and the ComfyUI that is tested with."""
    config = json.loads((ROOT / "pyrightconfig.json").read_text())
    config |= {name: [str(ROOT / path) for path in config[name]] for name in ("include", "exclude")}
    config |= {"extraPaths": [str(describe().comfyui), str(ROOT / "scripts"), str(ROOT)], "venvPath": sys.prefix,
               "venv": "."}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    result = subprocess.run([sys.executable, "-m", "basedpyright", "-p", str(tmp_path), "--pythonpath", sys.executable],
                            capture_output=True, text=True)
    assert result.returncode == 0 and "\n0 errors" in f"\n{result.stdout}", result.stdout + result.stderr


def test_without_comfyui_the_pack_imports_and_says_why(caplog):
    result = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; s = u.spec_from_file_location('pack', '__init__.py'); "
         "m = u.module_from_spec(s); s.loader.exec_module(m)"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "needs ComfyUI 0.3.75 or newer" in result.stderr
