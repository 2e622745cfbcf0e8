"""What keeps the project readable: layers, data without code, files that load, a small repository."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgekit"

# From top to bottom. A module may import what stands in a lower row, and its own package.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("bench", "console", "doctor", "matrix", "new"),
    ("adopt", "device"),
    ("build",),
    ("plan",),
    ("parity", "stages"),
    ("training", "pruning", "float_model", "calibration", "live"),
    ("backends", "models"),
    ("preprocess",),
    ("datasets",),
    ("qdq",),
    ("rewrites", "qdq_loop"),
    ("graph", "flow", "compare", "metrics", "losses", "ops", "report", "systems", "timing", "slices"),
    ("quant",),
    ("formats",),
    ("recipe", "target", "cache", "bundle", "tools"),
    ("document",),
    ("artifact",),
    ("native", "speech_quality", "pictures"),
    ("progress", "page", "plugins", "resize", "snr", "spectrum", "native_format"),
    ("errors",),
)
RANK = {name: -row for row, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "onnx", "onnxsim", "onnx_ir", "onnxruntime", "torch_pruning", "scipy", "av", "soundfile", "pystoi", "pesq", "tensorrt", "openvino"}
# What `edgekit --help` and `edgekit plan` run through.
CHEAP = {"__init__", "plugins", "__main__", "cli", "doctor", "new", "build", "plan", "stages", "recipe", "target", "cache", "bundle", "tools", "document", "artifact", "progress", "errors"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`stages` of edgekit/stages/load.py: a package is one member of its layer."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, whether at the top of the module) of every import that runs; TYPE_CHECKING ones do not."""
    tree = ast.parse(path.read_text())
    package = ("edgekit", *path.relative_to(PACKAGE).parent.parts)
    unseen = {node for branch in ast.walk(tree) if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test) for node in ast.walk(branch)}
    inside = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (parent, node.module) if part)
            found += [(f"{module}.{alias.name}", node not in inside) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path):
    here = name_of(path)
    if here == "__init__":
        assert not [name for name, _ in imports(path) if name.startswith("edgekit")], "public names are lazy"
        return
    assert here in RANK, f"{here} has no layer: give it one in LAYERS and in docs/design.md"
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "edgekit" and len(parts) > 1 and parts[1] in RANK and parts[1] != here:
            assert RANK[parts[1]] < RANK[here], f"{here} imports {parts[1]}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(path):
    top = {name.split(".")[0] for name, is_top in imports(path) if is_top}
    # A model's module is its layers; it is imported when a model is asked for.
    allowed = {"torch"} if name_of(path) == "models" and path.name != "__init__.py" else set()
    assert not (top & HEAVY) - allowed
    if name_of(path) in CHEAP:
        assert "numpy" not in top and "safetensors" not in top


def test_stages_are_cheap_to_import():
    script = f"import sys, edgekit.cli, edgekit.build\nfrom edgekit import stages\nfor name in stages.STAGES: stages.get(name)\nprint(sorted({HEAVY | {'numpy', 'safetensors'}!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "[]\n", ran.stdout + ran.stderr


def test_every_stage_keeps_the_protocol_and_reads_earlier_stages_only():
    from edgekit import stages

    names = list(stages.STAGES)
    assert names == ["load", "prune", "reference", "calibrate", "quantize", "export", "verify", "package"]
    for position, name in enumerate(names):
        stage = stages.get(name)
        assert set(stage.NEEDS) <= set(names[:position]) and isinstance(stage.SEMANTICS, int)
        assert isinstance(stage.TOOLS, tuple) and callable(stage.plan) and callable(stage.run)


def test_gates_are_in_packages_key_and_in_no_other():
    from edgekit import stages

    for name in stages.STAGES:
        source = Path(stages.get(name).__file__).read_text()
        assert (("recipe.gates" in source) or ('section("gates")' in source)) == (name == "package"), name


@pytest.mark.parametrize("folder", ["recipes", "calibration", "targets"])
def test_data_folders_hold_no_code(folder):
    assert not [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh", ".so", ".pkl", ".pt")]


def test_every_yaml_loads_against_its_schema():
    from edgekit import document
    from edgekit.datasets import read_description
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target

    for path in sorted((ROOT / "targets").glob("*.yaml")):
        assert load_target(path.stem, ROOT / "recipes").name == path.stem
    for path in sorted((ROOT / "calibration").glob("*.yaml")):
        assert read_description(path)["dataset"]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = load_recipe(path)
        assert recipe.name == path.stem, "a build of recipes/x.yaml leaves build/x/"
        assert load_target(recipe.target, recipe.dir)
    for path in sorted((ROOT / "recipes/training").glob("*.yaml")):
        from edgekit.training import TrainRecipe

        assert document.load(path, TrainRecipe)


def test_every_recipe_names_its_schema_for_editors():
    for path in (ROOT / "recipes").glob("*.yaml"):
        first = path.read_text().splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema="), path
        assert (path.parent / first.partition("=")[2]).is_file()


@pytest.mark.parametrize("path", [*ROOT.glob("*.toml"), *(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "targets").rglob("*.yaml")], ids=lambda p: p.name)
def test_data_is_plain(path):
    if path.suffix == ".yaml":
        yaml.safe_load(path.read_text())
    assert "\t" not in path.read_text()


def test_tracked_files_stay_under_24_mib():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=60)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    sizes = {name: os.path.getsize(ROOT / name) for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}
    assert sum(sizes.values()) < 24 << 20, sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_there_is_no_module_called_utils():
    assert not [path for path in ROOT.glob("[!.]*/**/*.py") if path.stem in ("utils", "helpers", "misc", "common")]


def test_a_wheel_holds_data_and_schemas(tmp_path):
    """What pyproject promises to put into the wheel is there to be put."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {**{folder: f"edgekit/_data/{folder}" for folder in ("targets", "calibration", "recipes")}, "native/tools/ek_trt": "edgekit/_data/ek_trt", "native/examples/run_bundle.cpp": "edgekit/_data/ek_trt/run_bundle.cpp"}
    assert all((ROOT / path).exists() for path in included)
    assert (PACKAGE / "schemas/recipe.json").is_file() and (PACKAGE / "templates/recipe.yaml").is_file()
    assert project["project"]["version"] == __import__("edgekit").__version__


def test_the_readmes_commands_exist():
    """Every `edgekit x` and `make x` that the README shows is one of ours."""
    import re

    from edgekit.cli import app, cache_app

    known = {info.name or info.callback.__name__ for info in app.registered_commands} | {"cache"}
    cached = {info.name or info.callback.__name__ for info in cache_app.registered_commands}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    used = re.findall(r"^edgekit (\w+)(?: (\w+))?", blocks, re.M)
    assert {command for command, _ in used} <= known and {"build", "new", "plan", "why", "inspect"} <= {command for command, _ in used}
    assert {sub for command, sub in used if command == "cache"} <= cached
    assert set(re.findall(r"^make ([a-z]+)", blocks, re.M)) <= targets


def test_the_readmes_recipe_loads(tmp_path):
    import re

    from edgekit.recipe import load_recipe

    text = re.search(r"```yaml\n(name: .*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(tmp_path / "r.yaml").section("load") == load_recipe(ROOT / "recipes/mhlt_xavier.yaml").section("load")
