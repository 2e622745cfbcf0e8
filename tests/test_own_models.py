"""A model that edgekit has never heard of, from a recipe to a bundle: a plain nn.Module, a whole definition, an ONNX file, a package's."""

from __future__ import annotations

import json
import re
import shutil
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import edgekit
from edgekit import graph
from edgekit.bundle import open_bundle
from edgekit.datasets import open_dataset
from edgekit.errors import RecipeError, ToolMissing
from edgekit.preprocess import preprocess
from edgekit.stages import STAGES
from tests.small_project import Project, make_project

ROOT = Path(__file__).parents[1]
NET = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, 2, 1)
        self.b = nn.Conv2d(width, width, 3, 2, 1)
        self.fc = nn.Linear(width, 1)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return torch.tanh(self.fc(x.mean((2, 3))))
"""
FOREIGN = NET + """
from edgekit.models import Foreign
from ports import IMAGE

def make(config):
    return Foreign(Net({"default": 8, "wide": 16}[config]), {"image": (1, 3, 16, 20)}, {"o": (1, 1)}, {"image": IMAGE})
"""
IMAGE = {"source": "video", "layout": "CHW", "mean": [127, 127, 127], "std": [60, 60, 60]}
TRAINABLE = FOREIGN + """
from edgekit.models.groups import Slice, one_axis

def groups(net):
    made = [Slice("a", "weight", 0, "out"), Slice("a", "bias", 0, "out"), Slice("b", "weight", 1, "in")]
    return [one_axis("a", "channels", net.a.out_channels, made)]

def train_forward(net, batch):
    return {"o": net(batch["video"])[:, 0]}

def make_trainable(config):
    plain = make(config)
    return Foreign(plain.module, plain.inputs, plain.outputs, plain.preprocess, train_forward=train_forward, prune_groups=groups)
"""


def net():
    scope: dict = {}
    exec(NET, scope)
    torch.manual_seed(0)
    return scope["Net"]().eval()


def onnx_file(path: Path, opset: int = 17) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net(), torch.randn(2, 3, 16, 20), str(path), dynamo=False, opset_version=opset, input_names=["image:0"], output_names=["o"],
                          dynamic_axes={"image:0": {0: "n"}, "o": {0: "n"}})  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    """A recipe for `net:make`, whose module lies beside it and imports a neighbour."""
    project = make_project(tmp_path / "car", load="{model: 'net:make', checkpoint: net.safetensors}")
    (project.root / "net.py").write_text(FOREIGN)
    (project.root / "ports.py").write_text(f"IMAGE = {IMAGE!r}\n")
    save_file(net().state_dict(), project.root / "net.safetensors")
    monkeypatch.chdir(project.root)
    return project


def entry(project: Project, stage: str) -> Path:
    [found] = project.root.glob(f".edgekit/{stage}-*/out")
    return found


def test_a_plain_module_beside_the_recipe_goes_all_the_way(project):
    done = edgekit.build("car.yaml")
    assert done.ran == tuple(STAGES) and done.report["verdict"] == "pending-device"
    assert done.report["coverage"]["int8_macs"] > 0.9
    with open_bundle(done.archive) as bundle:
        bundle.verify()
        assert not [name for name in bundle.manifest["files"] if name.endswith(".py")], "a bundle holds no code"
    want = json.loads((entry(project, "reference") / "reference.json").read_text())
    assert want["models"]["float"]["parameters"] == sum(p.numel() for p in net().parameters())
    nodes = [node.name for node in graph.load(entry(project, "calibrate") / "engines/main/float.onnx").graph if node.op_type in graph.MAC_OPS]
    assert nodes == ["module/a/Conv", "module/b/Conv", "module/fc/Gemm"]
    assert edgekit.build("car.yaml").ran == ()
    assert not list(project.root.glob("__pycache__")), "nothing is written beside the user's code"


@pytest.mark.parametrize("target", ["onnxruntime_x86", "x86_openvino", "raspberry_pi5"])
def test_a_plain_module_goes_to_every_runtime_that_is_here(project, target):
    try:
        done = edgekit.build("car.yaml", [f"target={target}"])
    except ToolMissing as error:
        pytest.skip(str(error))
    assert done.report["verdict"] == "pass" and done.report["measured_on"] == "host"
    assert done.report["coverage"]["grade"] == "measured" and done.report["coverage"]["int8_macs"] > 0.9


def test_an_edit_of_the_module_builds_everything_again(project):
    edgekit.build("car.yaml")
    (project.root / "net.py").write_text(FOREIGN.replace("torch.tanh(", "torch.sigmoid("))
    done = edgekit.build("car.yaml")
    assert done.ran == tuple(STAGES), "the weights are equal, the code is not"
    values = done.report["predictions"]["float"]
    assert min(values) > 0, "the new code ran, not what was imported before"


def test_two_recipes_may_each_have_a_module_of_one_name(project, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(project.root, other)
    (other / "net.py").write_text(FOREIGN.replace("torch.tanh(", "torch.sigmoid("))
    (other / "ports.py").write_text(f"IMAGE = {IMAGE | {'std': [255, 255, 255]}!r}\n")
    results = [edgekit.build(folder / "car.yaml", out=folder / "build", cache_root=folder / ".edgekit") for folder in (project.root, other, project.root)]
    assert results[2].ran == ()
    assert min(results[1].report["predictions"]["float"]) > 0 > min(results[0].report["predictions"]["float"])
    spec = json.loads((other / "build/car/preprocess.json").read_text())
    assert spec["video"]["std"] == [255, 255, 255], "the neighbour is the other folder's too"


def test_a_plan_neither_imports_the_module_nor_torch(project):
    (project.root / "net.py").write_text("raise RuntimeError('imported')\n")
    assert project.run("plan", "car.yaml").exit_code == 0
    refused = project.run("build", "car.yaml")
    assert refused.exit_code == 2 and "net.py cannot be imported: RuntimeError: imported" in refused.stderr


def test_pruning_a_module_without_groups_says_what_to_give(project):
    refused = project.run("build", "car.yaml", "prune={importance: magnitude, macs: 0.7}")
    assert refused.exit_code == 2
    assert "model `net:make` has nothing that can be removed: `Foreign` was given no `prune_groups`" in refused.stderr


@pytest.mark.parametrize("wish, key", [("{importance: taylor, macs: 0.7}", "prune.importance"), ("{importance: magnitude, macs: 0.7, finetune: {epochs: 1}}", "prune.finetune")])
def test_training_a_module_without_train_forward_is_refused(project, wish, key):
    refused = project.run("build", "car.yaml", f"prune={wish}")
    assert refused.exit_code == 2 and f"`{key}`: model `net:make` came without `train_forward`" in refused.stderr
    assert project.stages() == {"load"}


def test_a_module_with_groups_and_train_forward_is_pruned_and_fine_tuned(project):
    (project.root / "net.py").write_text(TRAINABLE)
    done = edgekit.build("car.yaml", ["load.model=net:make_trainable", "prune={importance: taylor, macs: 0.76, finetune: {epochs: 1}}"])
    sizes = done.report["sizes"]
    assert sizes["pruned"]["macs"] / sizes["float"]["macs"] == pytest.approx(0.76, abs=0.02)
    assert load_file(entry(project, "prune") / "model.safetensors")["a.weight"].shape[0] == 6


def test_a_factory_may_return_a_whole_definition(project):
    """Here our own: whatever has the attributes is a model."""
    (project.root / "net.py").write_text("from edgekit.models import tiny\n\ndef make(config):\n    return tiny\n")
    done = edgekit.build("car.yaml", ["load.config=tiny", "load.checkpoint=model.safetensors"])
    assert done.report["verdict"] == "pending-device"
    assert (project.root / "build/car/engines/step").is_dir()


@pytest.mark.parametrize(
    "change, override, says",
    [
        ("", "load.model=nett:make", r"there is no module `nett`, neither in .* nor on the Python path"),
        ("", "load.model=net:mak", r"net.py has no function `mak`"),
        ("", "load.model='net.py:make'", r"there is no module `net.py`"),
        ("", "load.model='net:make()'", r"`net:make\(\)` is not `package.module:factory`"),
        ("", "load.config=huge", r"`net:make` fails for configuration `huge`: KeyError"),
        ("", "load.config=wide", r"net.safetensors: `a.weight` is \[8, 3, 3, 3\], this model has \[16, 3, 3, 3\]"),
        ('(1, 3, 16, 20)', 'image": (3, 16, 20)', r"`image` has shape \[3, 16, 20\]"),
        ('(1, 1)', '(1, 2)', r"the module's forward returns|forward returns \[\[1, 1\]\], declared are"),
        ('(1, 3, 16, 20)', '(1, 3, 4, 16, 20)', r"layout CHW with batch 1 in front has 4 axes"),
        ('{"image": IMAGE}', '{}', r"nothing says what input `image` \[1, 3, 16, 20\] is made of"),
        ('{"image": IMAGE}', '{"image": {**IMAGE, "mean": None}}', r"input `image`.*needs `mean`"),
        ('{"o": (1, 1)}', '{"o": (1, 1), "p": (1, 1)}', r"forward returns \[\[1, 1\]\], declared are"),
        ("return Foreign(", "return (", r"returned tuple without `CONFIGS`"),
    ],
)
def test_what_is_wrong_with_a_users_model_is_one_sentence(project, change, override, says):
    path = project.root / "net.py"
    arguments = []
    if change:
        old = '"image": (1, 3, 16, 20)' if override.startswith('image"') else change
        path.write_text(FOREIGN.replace(old, f'"{override}' if override.startswith('image"') else override))
    else:
        arguments = [override]
    refused = project.run("build", "car.yaml", *arguments)
    assert refused.exit_code == 2, refused.stderr
    assert re.search(says, refused.stderr), refused.stderr
    assert "Traceback" not in refused.stderr and project.stages() == set()


def test_weights_that_the_module_has_no_use_for_are_refused(project):
    save_file({**net().state_dict(), "extra.weight": torch.zeros(2)}, project.root / "net.safetensors")
    refused = project.run("build", "car.yaml")
    assert refused.exit_code == 2 and "has no use for 1 of the weights, first `extra.weight`" in refused.stderr


def test_a_recipe_inside_a_bundle_runs_no_code(project):
    edgekit.build("car.yaml")
    for name in ("net.py", "ports.py", "net.safetensors"):
        shutil.copy(project.root / name, project.root / "build/car")
    refused = project.run("build", "build/car/recipe.yaml")
    assert refused.exit_code == 2 and "no code is taken from one" in refused.stderr


def test_a_float_model_whose_code_no_recipe_named_runs_none(project):
    """Its directory may come from another machine's cache."""
    from edgekit.float_model import FloatModel
    from edgekit.models import code

    edgekit.build("car.yaml")
    code._FOUND.clear()
    with pytest.raises(RecipeError, match=r"the code of `net:make` is not at hand: no recipe of this command names it"):
        FloatModel.open(entry(project, "load")).module()


# ONNX


@pytest.fixture
def onnx_project(project) -> Project:
    onnx_file(project.root / "net.onnx")
    text = project.recipe.read_text()
    load = f"load: {{model: net.onnx, inputs: {{'image:0': {json.dumps(IMAGE)}}}}}"
    project.recipe.write_text(text.replace("load: {model: 'net:make', checkpoint: net.safetensors}", load))
    return project


@pytest.mark.parametrize("target", ["jetson_xavier", "onnxruntime_x86", "x86_openvino", "raspberry_pi5"])
def test_an_onnx_file_goes_all_the_way(onnx_project, target):
    try:
        done = edgekit.build("car.yaml", [f"target={target}"])
    except ToolMissing as error:
        pytest.skip(str(error))
    assert done.ran == tuple(STAGES) and done.report["verdict"] in ("pass", "pending-device")
    assert done.report["coverage"]["int8_macs"] > 0.9
    with open_bundle(done.archive) as bundle:
        bundle.verify()
        assert bundle.manifest["model"]["model"] == "onnx"
    want = net()
    data = open_dataset("cabin", "test", None, onnx_project.root, onnx_project.root / ".edgekit")
    spec = json.loads((entry(onnx_project, "load") / "preprocess.json").read_text())
    with torch.no_grad():
        values = [float(want(torch.from_numpy(preprocess(spec, data.clip(id))["video"])[None])) for id in data.ids]
    assert done.report["predictions"]["float"] == pytest.approx(values, abs=1e-6)
    assert done.report["predictions"]["artifact"] == pytest.approx(values, abs=0.02)
    assert edgekit.build("car.yaml", [f"target={target}"]).ran == ()


def test_the_map_leads_from_our_names_to_those_in_the_file(onnx_project):
    edgekit.build("car.yaml")
    names = json.loads((entry(onnx_project, "load") / "names.json").read_text())["main"]
    assert names["ports"] == {"image_0": "image:0", "o": "o"}
    assert names["nodes"]["a/Conv"] == "/a/Conv" and names["tensors"]["a/Conv.weight"] == "a.weight"
    io = json.loads((entry(onnx_project, "load") / "io.json").read_text())["engines"]["main"]
    assert [(t["name"], t["shape"]) for t in io["inputs"] + io["outputs"]] == [("image_0", [1, 3, 16, 20]), ("o", [1])]


def test_an_onnx_file_and_the_module_it_was_made_of_agree(onnx_project):
    first = edgekit.build("car.yaml").report["predictions"]
    onnx_project.recipe.write_text(onnx_project.recipe.read_text().replace(f"inputs: {{'image:0': {json.dumps(IMAGE)}}}", "checkpoint: net.safetensors").replace("net.onnx", "net:make"))
    second = edgekit.build("car.yaml").report["predictions"]
    assert first["float"] == pytest.approx(second["float"], abs=1e-6)
    assert first["artifact"] == pytest.approx(second["artifact"], abs=2e-3)


@pytest.mark.parametrize(
    "override, says",
    [
        ("prune={macs: 0.7}", "`prune`: an .onnx file cannot be pruned"),
        ("load.checkpoint=net.safetensors", "an .onnx file holds its own weights"),
        ("load.inputs=", "`load.inputs` is missing"),
        ("load.inputs={image: {source: video, layout: CHW, mean: [0, 0, 0], std: [1, 1, 1]}}", "`load.inputs.image`: net.onnx has no such input"),
        ("load.inputs={'image:0': {source: video, layout: S, mean: [0, 0, 0], std: [1, 1, 1]}}", "video cannot be laid out as S"),
        ("load.inputs={'image:0': {source: audio, layout: CS}}", "needs `sample_rate_hz`"),
        ("load.inputs={'image:0': {source: video, layout: HWC, mean: [0, 0, 0], std: [1, 1, 1]}}", "axis C of layout HWC must be 3, got 20"),
        ("load.model=none.onnx", "`load.model` does not exist"),
    ],
)
def test_what_is_wrong_with_a_recipe_for_an_onnx_file_is_one_sentence(onnx_project, override, says):
    refused = onnx_project.run("build", "car.yaml", override)
    assert refused.exit_code == 2 and says in refused.stderr, refused.stderr
    assert onnx_project.stages() == set()


# packages


def test_an_installed_packages_model_is_built_and_its_version_enters_the_key(project, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "acme-1.5.dist-info").mkdir(parents=True)
    (site / "acme-1.5.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.5\n")
    (site / "acme-1.5.dist-info/entry_points.txt").write_text("[edgekit.models]\nacme_tiny = edgekit.models.tiny\n")
    monkeypatch.syspath_prepend(str(site))
    done = edgekit.build("car.yaml", ["load.model=acme_tiny", "load.config=tiny", "load.checkpoint=model.safetensors"])
    assert done.report["verdict"] == "pending-device"
    assert json.loads((entry(project, "load") / "model.json").read_text())["code"] == {"distribution": "acme 1.5"}


# one modality


def test_an_onnx_file_that_hears_builds_from_a_folder_of_sound(project):
    rng = np.random.default_rng(0)
    for path in (project.root / "cabin").glob("*.npz"):
        path.unlink()
        with wave.open(str(path.with_suffix(".wav")), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((3000 * rng.standard_normal(int(rng.integers(300, 900)))).astype("<i2").tobytes())
    description = project.root / "calibration/cabin.yaml"
    description.write_text(description.read_text() + "parts: audio\nsample_rate_hz: 8000\nlabels: {mood: o}\n")
    torch.manual_seed(0)
    hearing = nn.Sequential(nn.Conv1d(1, 8, 9, 4), nn.ReLU(), nn.Conv1d(8, 8, 9, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 1)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(hearing, torch.randn(1, 1, 512), str(project.root / "ear.onnx"), dynamo=False, opset_version=17, input_names=["sound"], output_names=["mood"])
    load = "load={model: ear.onnx, inputs: {sound: {source: audio, layout: CS, sample_rate_hz: 8000, normalize: none}}}"
    done = edgekit.build("car.yaml", [load])
    assert done.report["primary"] == "mood" and done.report["n"] == 6
    with open_bundle(done.archive) as bundle:
        bundle.verify()
    spec = json.loads((project.root / "build/car/preprocess.json").read_text())
    data = open_dataset("cabin", "test", None, project.root, project.root / ".edgekit")
    with torch.no_grad():
        values = [float(hearing(torch.from_numpy(preprocess(spec, data.clip(id))["wave"])[None])) for id in data.ids]
    assert done.report["predictions"]["float"] == pytest.approx(values, abs=1e-6)
    assert done.report["predictions"]["artifact"] == pytest.approx(values, abs=0.02)
    golden = load_file(project.root / "build/car/golden.safetensors")
    assert not [name for name in golden if name.endswith("/frames")] and [name for name in golden if name.endswith("/input/wave")]
