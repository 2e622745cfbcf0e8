"""All stages together on models with random weights: what a build leaves, reuses, survives, and what its receiver can check.

Only mechanics: accuracy is for the shipped checkpoint's own tests.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import edgekit
from edgekit import backends, graph, tools, training
from edgekit.backends import onnxruntime
from edgekit.bundle import open_bundle
from edgekit.datasets import Clip, open_dataset
from edgekit.flow import run_flow
from edgekit.preprocess import preprocess
from edgekit.recipe import load_recipe
from edgekit.stages import STAGES, Job, verify
from edgekit.target import load_target
from tests.backends.tensorrt.stub_device import StubDevice
from tests.small_project import Project, make_project, save_random_weights, write_clips

ROOT = Path(__file__).parents[1]
PRUNE = "{importance: magnitude, macs: 0.75, finetune: {epochs: 1}}"


@pytest.fixture(scope="module")
def mhlt(tmp_path_factory):
    """(project, Result) of MHLT `tiny`, pruned by magnitude and fine-tuned for one epoch on eight clips."""
    project = make_project(tmp_path_factory.mktemp("mhlt") / "car", "mhlt", prune=PRUNE)
    with contextlib.chdir(project.root):
        return project, edgekit.build("car.yaml", out=project.root / "build")


@pytest.fixture
def project(mhlt, tmp_path, monkeypatch) -> Project:
    """A copy of the built project, with its cache, as the current directory."""
    shutil.copytree(mhlt[0].root, tmp_path / "car")
    monkeypatch.chdir(tmp_path / "car")
    return Project(tmp_path / "car")


def entry(project: Project, stage: str) -> Path:
    """The output of the one entry that a stage has."""
    [found] = project.root.glob(f".edgekit/{stage}-*/out")
    return found


# what a build leaves


def test_every_stage_runs_once_and_leaves_a_bundle_that_verifies(mhlt):
    project, result = mhlt
    assert result.ran == tuple(STAGES) and result.exit_code == 0
    assert result.report["verdict"] == "pending-device" and result.report["measured_on"] == "host-simulated"
    for path in (result.bundle, result.archive):
        with open_bundle(path) as bundle:
            bundle.verify()
            assert {name for name in bundle.manifest["files"] if name.startswith("engines/")} >= {
                f"engines/{engine}/{file}" for engine in ("clip_encoder", "audio_encoder", "head") for file in ("model.onnx", "calibration.cache", "precisions.json")
            }
    assert sorted(path.name for path in (project.root / "build").iterdir()) == ["car", "car.heldout.tar", "car.tar.zst"]


def test_the_pruned_model_is_smaller_in_every_artifact(mhlt):
    project, result = mhlt
    before, after = (load_file(entry(project, stage) / "model.safetensors") for stage in ("load", "prune"))
    assert sum(v.size for v in after.values()) < 0.9 * sum(v.size for v in before.values())
    sizes = result.report["sizes"]
    assert sizes["pruned"]["macs"] / sizes["float"]["macs"] == pytest.approx(0.75, abs=0.02)
    assert sizes["artifact"]["bytes"] < 0.6 * sizes["pruned"]["bytes"], "most weights are INT8"
    runs = {"clip_encoder": 2, "audio_encoder": 1, "head": 1}
    for folder in (entry(project, "calibrate"), entry(project, "quantize"), result.bundle):
        onnx = "model.onnx" if folder == result.bundle else "float.onnx"
        macs = {engine: sum(graph.count_macs(folder / "engines" / engine / onnx).values()) for engine in runs}
        assert sum(macs[engine] * runs[engine] for engine in runs) == sizes["pruned"]["macs"], folder


def test_with_the_bundle_alone_its_receiver_gets_the_golden_answers(mhlt):
    """What the device's own program has to do, done with numpy and a runtime: preprocess, wire the engines, compare."""
    bundle = mhlt[1].bundle
    flow, spec, described = (json.loads((bundle / f"{name}.json").read_text()) for name in ("flow", "preprocess", "golden"))
    tensors = load_file(bundle / "golden.safetensors")
    sessions = {step["engine"]: onnxruntime.simulate(bundle / f"engines/{step['engine']}/model.onnx") for step in flow["steps"]}
    assert len(described["clips"]) == 4
    for clip in described["clips"]:
        raw = Clip(clip["id"], tensors[f"{clip['id']}/raw/frames"], clip["fps"], tensors[f"{clip['id']}/raw/audio"], clip["sample_rate_hz"], {})
        inputs = preprocess(spec, raw)
        for name, value in inputs.items():
            assert np.abs(value - tensors[f"{clip['id']}/input/{name}"]).max() <= described["preprocess_max_abs"][name]
        for name, value in run_flow(flow, sessions, inputs).items():
            # 1e-4: rewritten float32 graphs against torch's
            assert value == pytest.approx(tensors[f"{clip['id']}/output/{name}"], abs=1e-4)


def test_the_bundles_checksums_and_scripts_are_those_of_a_plain_shell(mhlt):
    bundle = mhlt[1].bundle
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, timeout=60).returncode == 0
    assert subprocess.run(["sh", "-n", "finish.sh"], cwd=bundle, timeout=60).returncode == 0
    text = (bundle / "README.txt").read_text()
    named = {path.relative_to(bundle).parts[0] for path in bundle.rglob("*")} - {"README.txt", "report.json"}
    assert [name for name in sorted(named) if name not in text] == [], "README.txt says what every file is for"


def test_finish_sh_builds_every_engine_beside_the_bundle_which_still_verifies(project):
    if shutil.which("flock") is None:
        pytest.skip("needs flock, as the device does")
    device = StubDevice.make(project.root / "device", project.root / "build/car", ["audio_encoder", "clip_encoder", "head"])
    ran = device.finish()
    assert ran.returncode == 0, ran.stderr
    made = sorted(str(path.relative_to(project.root / "build/car")) for path in (project.root / "build/car/result").rglob("model.engine"))
    assert made == [f"result/engines/{engine}/model.engine" for engine in ("audio_encoder", "clip_encoder", "head")]
    assert project.run("inspect", "build/car").exit_code == 0
    assert edgekit.build("car.yaml").ran == () and (project.root / "build/car" / made[0]).is_file()


@pytest.mark.parametrize("name", ["engines/head/model.onnx", "finish.sh", "report.json", "golden.safetensors", "manifest.json", "../car.tar.zst"])
def test_one_changed_byte_is_an_integrity_error(project, name):
    path = project.root / "build/car" / name
    data = bytearray(path.read_bytes())
    at = data.index(b'"sha256": "') + 11 if name == "manifest.json" else len(data) // 2
    data[at] ^= 1
    path.write_bytes(data)
    result = project.run("inspect", "build/car.tar.zst" if name.endswith("zst") else "build/car")
    assert result.exit_code == 6 and "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 2, result.stderr


# what is reused


def test_a_second_build_runs_nothing(project):
    assert edgekit.build("car.yaml").ran == ()
    planned = json.loads(project.run("plan", "car.yaml", "--json").stdout)
    assert planned["up_to_date"] and planned["target_problems"] == []


def test_a_changed_gate_packages_again_and_loads_no_torch(project):
    script = "import sys\nfrom edgekit.build import build\nresult = build('car.yaml', ['gates.mae.max=0.0001'])\nprint(result.ran, result.exit_code, sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "('package',) 3 []\n", ran.stderr
    assert sorted(path.name for path in (project.root / "build").rglob("*")) == ["car", "report.html", "report.json"], "nothing that could be flashed"
    assert edgekit.build("car.yaml").ran == (), "the older package is still there"


@pytest.mark.parametrize(
    ("override", "stage", "reason", "stale"),
    [
        ("quantize.observer=minmax", "quantize", "spec `observer`: `percentile` -> `minmax`", ["quantize", "export", "verify", "package"]),
        ("prune.finetune.epochs=2", "prune", "spec `finetune.epochs`: `1` -> `2`", [*STAGES][1:]),
        ("calibrate.clips=3", "calibrate", "spec `clips`: `4` -> `3`", ["calibrate", "quantize", "export", "verify", "package"]),
        ("gates.mae.max_increase=1", "package", "spec `gates.mae.max_increase`: `2.0` -> `1.0`", ["package"]),
    ],
)
def test_why_names_what_made_a_stage_stale(project, override, stage, reason, stale):
    assert reason in project.run("why", stage, "car.yaml", override).stdout.splitlines()
    rows = json.loads(project.run("plan", "car.yaml", override, "--json").stdout)["steps"]
    assert [row["stage"] for row in rows if not row["cached"]] == stale


def test_why_names_a_file_that_changed(project):
    save_random_weights("mhlt", project.checkpoint)
    assert project.run("why", "load", "car.yaml").stdout == "load is up to date\n", "the same weights, written again"
    data = bytearray(project.checkpoint.read_bytes())
    data[-1] ^= 1
    project.checkpoint.write_bytes(data)
    assert project.run("why", "load", "car.yaml").stdout == "file `checkpoint` has another content\n"
    project.replace(project.labels, "test0,", "test00,")
    project.clip("test0").rename(project.clip("test00"))
    assert "file `data` has another content" in project.run("why", "reference", "car.yaml").stdout


# what is survived

STOPS_AFTER_TWO_EPOCHS = """
import sys, time
from edgekit import cli, training
save = training._save_state
def save_and_wait(path, state):
    save(path, state)
    if state["epoch"] == 2:
        print("two epochs", flush=True)
        time.sleep(600)
training._save_state = save_and_wait
sys.argv = ["edgekit", "build", "car.yaml", "prune.finetune.epochs=4"]
cli.main()
"""


def test_a_build_that_is_killed_while_fine_tuning_goes_on_there_and_publishes_nothing_broken(project, monkeypatch):
    shutil.rmtree(project.root / "build")
    before = sorted(project.root.glob(".edgekit/*-*"))
    with subprocess.Popen([sys.executable, "-c", STOPS_AFTER_TWO_EPOCHS], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout.readline() == "two epochs\n"
        build.send_signal(signal.SIGKILL)
    assert sorted(project.root.glob(".edgekit/*-*")) == before, "no entry of the killed stage"
    assert not (project.root / "build").exists()
    [state] = project.root.glob(".edgekit/scratch/prune-*/training.pt")
    assert project.run("cache", "verify").exit_code == 0

    resumed_at = []
    resume = training._resume
    monkeypatch.setattr(training, "_resume", lambda *a: resumed_at.append(resume(*a)) or resumed_at[-1])
    done = edgekit.build("car.yaml", ["prune.finetune.epochs=4"])
    assert resumed_at == [2] and done.ran == tuple(STAGES)[1:]
    assert not state.parent.exists() and not list((project.root / ".edgekit/staging").iterdir())
    with open_bundle(done.archive) as bundle:
        bundle.verify()

    [resumed] = [path for path in project.root.glob(".edgekit/prune-*/out") if json.loads((path / "prune.json").read_text())["finetune"]["epochs"] == 4]
    # The epochs of a run that nothing interrupted, in a cache of its own that has load's entry only.
    shutil.copytree(entry(project, "load").parent, project.root / f"other/{entry(project, 'load').parent.name}")
    monkeypatch.setattr("edgekit.stages.reference.run", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        edgekit.build("car.yaml", ["prune.finetune.epochs=4"], cache_root="other")
    [unbroken] = project.root.glob("other/prune-*/out")
    assert resumed_at == [2, 0]
    want, got = (load_file(path / "model.safetensors") for path in (unbroken, resumed))
    for name, value in want.items():  # 1e-5: another process may add in another order
        assert np.allclose(got[name], value, atol=1e-5), name


# states


@pytest.fixture(scope="module")
def stateful(tmp_path_factory):
    """(project, report) of the model `tiny`, whose LSTM carries its state from clip to clip."""
    project = make_project(tmp_path_factory.mktemp("tiny") / "car")
    with contextlib.chdir(project.root):
        return project, edgekit.build("car.yaml").report


def parity_of(project: Project, tmp_path: Path, states: dict) -> float:
    """Worst max_abs of the artifact's outputs with these states in the flow.json that the device gets."""
    export = tmp_path / "export"
    shutil.copytree(entry(project, "export"), export)
    flow = json.loads((export / "flow.json").read_text())
    (export / "flow.json").write_text(json.dumps({**flow, "states": states}))
    (tmp_path / "out").mkdir()
    inputs = {"export": export, "reference": entry(project, "reference"), "quantize": entry(project, "quantize")}
    data = open_dataset("cabin", "test", None, project.root, project.root / ".edgekit")
    verify.run(Job({"metrics": ["mae"], "resamples": 10, "seed": 0, "target": load_target("jetson_xavier", ROOT).spec()}, inputs, {"data": data}, tmp_path / "out", tmp_path, tmp_path))
    return max(row["max_abs"] for row in json.loads((tmp_path / "out/report.json").read_text())["parity"].values())


STATES = [{"in": f"{name}_in", "out": f"{name}_out", "shape": [1, 1, 16], "init": 0.0} for name in "hc"]


def test_a_stateful_model_keeps_its_state_from_step_to_step_in_every_artifact(stateful, tmp_path):
    project, report = stateful
    for stage in ("load", "prune", "export"):
        assert json.loads((entry(project, stage) / "flow.json").read_text())["states"] == {"step": STATES}
    bundle = project.root / "build/car"
    assert json.loads((bundle / "io.json").read_text())["engines"]["step"]["states"] == STATES
    golden = load_file(bundle / "golden.safetensors")
    kept = [value for key, value in golden.items() if "/state/step/" in key]
    assert len(kept) == 2 * 4 and all(value.shape == (4, 1, 1, 16) and np.ptp(value, axis=0).max() > 0.01 for value in kept)
    assert "feed output `h_out` back into `h_in`" in (bundle / "README.txt").read_text()
    honest = parity_of(project, tmp_path, {"step": STATES})
    assert honest == max(row["max_abs"] for row in report["parity"].values())


@pytest.mark.parametrize(
    "states",
    [
        [{**pair, "out": other["out"]} for pair, other in zip(STATES, reversed(STATES), strict=True)],
        [{**pair, "init": 1.0} for pair in STATES],
    ],
    ids=["h and c swapped", "another start"],
)
def test_a_state_that_is_wired_wrongly_fails_parity(stateful, tmp_path, states):
    project, report = stateful
    honest = max(row["max_abs"] for row in report["parity"].values())
    assert parity_of(project, tmp_path, {"step": states}) > 10 * honest


def test_a_state_that_starts_over_at_every_step_fails_parity(stateful, tmp_path, monkeypatch):
    project, report = stateful
    honest = max(row["max_abs"] for row in report["parity"].values())
    keep = onnxruntime.simulate

    def forgetful(path, **options):
        session = keep(path, **options)
        return lambda feeds: session({name: 0 * value if name in ("h_in", "c_in") else value for name, value in feeds.items()})

    monkeypatch.setattr(onnxruntime, "simulate", forgetful)
    assert parity_of(project, tmp_path, {"step": STATES}) > 10 * honest


def test_a_flow_without_its_states_runs_nowhere(stateful, tmp_path):
    with pytest.raises(Exception, match="h_in"):
        parity_of(stateful[0], tmp_path, {})


# the README


def commands(text: str) -> list[list[str]]:
    """Every command of the ```sh blocks, split as the shell does."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


def make_expands_to(goal: str) -> list[list[str]]:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    ran = subprocess.run(["make", "-n", goal], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return [shlex.split(line) for line in ran.stdout.splitlines() if line.startswith(".venv/bin/")]


def test_make_demo_and_make_test_expand_to_what_they_promise():
    assert [line[:2] for line in make_expands_to("demo")][-2:] == [[".venv/bin/edgekit", "build"], [".venv/bin/edgekit", "inspect"]]
    assert make_expands_to("test")[-1][:3] == [".venv/bin/python", "-m", "pytest"]


def can_be_built(recipes: list[str]) -> list[str]:
    """Those of MHLT alone, of which a tiny one is at hand, for whose target every tool is installed here."""
    found = []
    for recipe in sorted(recipes):
        if load_recipe(recipe).load.model != "mhlt":
            continue
        target = load_target(load_recipe(recipe).target, ROOT)
        if None not in backends.get(target.backend).versions(target.spec()).values():
            found.append(recipe)
    return found


def test_the_readmes_commands_work_as_they_stand_there(tmp_path, monkeypatch):
    """In their order, on the model's tiny configuration and a few clips instead of the shipped checkpoint."""
    project = Project(tmp_path / "checkout")
    (project.root / "recipes").mkdir(parents=True)
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        shutil.copy(recipe, project.root / "recipes")
    write_clips(project.root)
    save_random_weights("mhlt", project.checkpoint)
    monkeypatch.chdir(project.root)
    tiny = ["load.config=tiny", f"load.checkpoint={project.checkpoint}", "prune.importance=magnitude", "prune.finetune={epochs: 1, clips: 8}",
            "calibrate={data: cabin, clips: 4}", "verify.data=cabin", "gates={mae: {max_increase: 9}}"]  # fmt: skip

    todo = []
    for command in commands((ROOT / "README.md").read_text()):
        todo += make_expands_to("demo")[-2:] if command == ["make", "demo"] else [command]
    ran = []
    for command in todo:
        if Path(command[0]).name != "edgekit":
            assert command[0] in ("make", "apt-get", "pip"), "a command that no test knows"
            continue
        if command[1:3] == ["doctor", "--install"]:
            assert command[3] in tools.TOOLS  # it would fetch it
            continue
        arguments = [name for argument in command[1:] for name in (can_be_built(glob.glob(argument)) if "*" in argument else [argument])]
        if arguments[0] in ("build", "plan", "why", "bench"):
            arguments += tiny
        result = project.run(*arguments)
        assert result.exit_code == 0, f"{' '.join(command)}: {result.stderr}"
        ran.append(arguments[0])
        if "--json" in arguments:
            *built, matrix = [json.loads(line) for line in result.stdout.splitlines()]
            assert {report["verdict"] for report in built} <= {"pass", "pending-device"} and len(built) > 1 and matrix["matrices"]
    assert {"build", "inspect", "new", "plan", "why", "cache"} <= set(ran)
    assert (project.root / "build/mhlt_xavier.tar.zst").is_file() and (project.root / "build/my_car.tar.zst").is_file()
