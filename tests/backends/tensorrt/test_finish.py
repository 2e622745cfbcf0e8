"""finish.sh on a device: whatever happens at whichever step, there is no half result and no wrong pass, and a second run ends well."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from edgekit.backends.tensorrt import kit as kits
from tests.backends.tensorrt.kits import ENGINES, make_bundle, place
from tests.backends.tensorrt.stub_device import StubDevice, kill_all

pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock, as the device does")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def device(made, tmp_path):
    return StubDevice.make(tmp_path / "device", place(*made, tmp_path), list(ENGINES))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_whole(result: Path) -> None:
    """What is called a result is one: sealed, complete, every sum right."""
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=result).returncode == 0
    names = set(files_below(result))
    for engine in ENGINES:
        assert {f"engines/{engine}/{file}" for file in ("model.engine", "layers.json", "build.json")} <= names
    assert {f"{kind}/{file}" for kind in ("golden", "heldout") for file in ("run.json", "compare.json")} <= names
    assert not [name for name in names if name.endswith(".part") or name.startswith(("bin/", "clips/"))]
    listed = {line.split("  ", 1)[1] for line in (result / "SHA256SUMS").read_text().splitlines()}
    assert listed == names - {"SHA256SUMS"}


def assert_kit_untouched(device: StubDevice, made) -> None:
    with_result = {name: data for name, data in files_below(device.kit).items() if not name.startswith(("result/", "result.part/", "result.lock"))}
    assert with_result == files_below(made[0])


# what it does


def test_a_run_leaves_a_sealed_result_and_the_kit_as_it_was(device, made):
    done = device.finish()
    assert done.returncode == 0, done.stderr
    assert_whole(device.result)
    assert_kit_untouched(device, made)
    assert not (device.kit / "result.part").exists()
    assert [line.split("]")[0] for line in done.stdout.splitlines() if line.startswith("[")] == [f"[{i}/8" for i in range(1, 9)]
    said = dict(line.split("=", 1) for line in (device.result / "device.txt").read_text().splitlines())
    assert said == {"sm": "72", "tensorrt": "8.5.2", "cuda": "11.4", "board": "Jetson-AGX", "l4t": "35.3.1"}


def test_the_tool_gets_the_kits_arguments(device):
    device.finish()
    calls = (device.stub / "calls").read_text().splitlines()
    work = device.kit / "result.part"
    assert calls[0] == f"build --onnx engines/eye/model.onnx --engine {work}/engines/eye/model.engine --layers {work}/engines/eye/layers.json --report {work}/engines/eye/build.json --timing-cache {work}/timing.cache --fp16 --workspace 64"
    assert calls[2].startswith(f"run --flow flow.txt --engines {work}/engines --inputs golden/inputs --outputs {work}/golden/outputs --report {work}/golden/run.json")
    assert len(calls) == 4


def test_a_finished_result_is_not_made_again(device):
    device.finish()
    before = files_below(device.result)
    again = device.finish()
    assert again.returncode == 0 and "done before" in again.stdout
    assert files_below(device.result) == before


def test_without_held_out_clips_golden_ones_are_checked_and_the_rest_can_follow(device):
    clips = device.kit.parent / "toy_x.heldout.tar"
    clips.rename(clips.with_name("elsewhere.tar"))
    assert device.finish().returncode == 0
    assert not (device.result / "heldout").exists() and "heldout=no" in (device.result / "result.txt").read_text()
    assert device.finish("--heldout", str(clips.with_name("elsewhere.tar"))).returncode == 0
    assert_whole(device.result)
    assert [call.split()[0] for call in (device.stub / "calls").read_text().splitlines()] == ["build", "build", "run", "run"], "the engines and the golden run were kept"


def test_results_go_where_they_are_asked_to_go(device):
    assert device.finish("../else/where").returncode == 0
    assert_whole(device.kit.parent / "else/where")
    assert not device.result.exists()
    assert device.finish("../with space/out").returncode == 2, "make would not take it"
    assert device.finish("a", "b").returncode == 2 and device.finish("--fast").returncode == 2 and device.finish("--heldout", "/nowhere").returncode == 2


def test_a_folder_that_is_no_result_is_left_alone(device):
    device.result.mkdir()
    (device.result / "mine").write_text("x")
    done = device.finish()
    assert done.returncode == 2 and "is no result" in done.stderr and (device.result / "mine").read_text() == "x"


def test_a_result_of_another_bundle_is_left_alone(device):
    assert device.finish().returncode == 0
    sums = device.kit / "SHA256SUMS"
    sums.write_text("".join(reversed(sums.read_text().splitlines(keepends=True))))  # another kit, as whole
    done = device.finish()
    assert done.returncode == 2 and "of another bundle" in done.stderr
    assert_whole(device.result)


def test_a_damaged_result_is_made_right_and_what_is_whole_is_kept(device):
    assert device.finish().returncode == 0
    (device.result / "engines/head/model.engine").write_text("damaged")
    assert device.finish().returncode == 0
    assert_whole(device.result)
    assert [call.split("engines/")[1].split("/")[0] for call in (device.stub / "calls").read_text().splitlines() if call.startswith("build")] == ["eye", "head", "head"]
    assert sum(call.startswith("run") for call in (device.stub / "calls").read_text().splitlines()) == 4, "measured again with the new engine"


# what it refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensorrt": "8.6.1"}, "tensorrt: expected 8.5.2, found 8.6.1"),
        ({"cuda": 12020}, "cuda: expected 11.4, found 12.2"),
        ({"chip": "tegra234"}, "sm: expected 72, found 87"),
    ],
)
def test_another_device_is_refused_before_anything_is_touched(device, made, change, message):
    device.become(**change)
    done = device.finish()
    assert done.returncode == 5 and message in done.stderr and "nothing of it was built" in done.stderr
    assert files_below(device.kit) == files_below(made[0])
    assert "make" not in device.trace() and "sha256sum" not in device.trace()


def test_headers_are_read_in_the_form_of_tensorrt_10_too(device):
    header = next((device.system / "usr/include").rglob("NvInferVersion.h"))
    header.write_text("#define TRT_MAJOR_ENTERPRISE 10\n#define TRT_MINOR_ENTERPRISE 3\n#define TRT_PATCH_ENTERPRISE 0\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< x\n#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE\n")
    assert "found 10.3.0" in device.finish().stderr


def test_a_library_that_is_not_what_the_headers_say_is_refused(device):
    device.become(library="8.5.1")
    done = device.finish()
    assert done.returncode == 5 and "tensorrt: expected 8.5.2, found 8.5.1" in done.stderr
    assert not device.result.exists() and not (device.stub / "calls").exists()


@pytest.mark.parametrize("name", ["engines/head/model.onnx", "engines.txt", "flow.txt", "golden/tolerance.txt", "ek_trt/Makefile"])
def test_a_missing_or_changed_file_stops_it_before_anything_is_built(device, name):
    path = device.kit / name
    data = path.read_bytes()
    for change in (lambda: path.write_bytes(data + b"x"), path.unlink):
        change()
        done = device.finish()
        assert done.returncode == 6 and name in done.stderr
        assert not (device.kit / "result.part").exists() and "make" not in device.trace()


def test_held_out_clips_of_another_bundle_are_refused(device):
    with (device.kit.parent / "toy_x.heldout.tar").open("ab") as file:
        file.write(b"\0")
    done = device.finish()
    assert done.returncode == 6 and "does not" not in done.stdout and "is damaged" in done.stderr
    assert not (device.kit / "result.part").exists()


@pytest.mark.parametrize(
    ("mark", "code", "message"),
    [("no_compiler", 5, "ek_trt cannot be compiled"), ("refuses", 4, "building eye failed"), ("empty", 4, "left no model.engine"), ("off", 3, "comparing the golden clips failed")],
)
def test_what_goes_wrong_leaves_no_result_and_says_which_step(device, mark, code, message):
    (device.stub / mark).touch()
    done = device.finish()
    assert done.returncode == code and message in done.stderr, done.stderr
    assert not device.result.exists()
    (device.stub / mark).unlink()
    assert device.finish().returncode == 0
    assert_whole(device.result)


def test_engines_of_before_an_update_are_not_taken_over(device):
    (device.stub / "off").touch()
    assert device.finish().returncode == 3
    (device.stub / "off").unlink()
    device.become(l4t="6.2")
    done = device.finish()
    assert done.returncode == 0 and "starting over" in done.stdout
    assert sum(call.startswith("build") for call in (device.stub / "calls").read_text().splitlines()) == 4


# every step, every mishap

# A command that finish.sh calls, and which call of it: each is a step at which something can happen.
STEPS = {
    "reading the passport": ("uname", 1),
    "checking the kit's files": ("sha256sum", 1),
    "checking the held-out clips": ("sha256sum", 2),
    "taking the lock": ("flock", 1),
    "noting the device": ("mv", 1),
    "compiling": ("make", 1),
    "asking for versions": ("version", 1),
    "building the first engine": ("build_eye", 1),
    "building the last engine": ("build_head", 1),
    "running the golden clips": ("run_golden", 1),
    "comparing the golden clips": ("compare_golden", 1),
    "unpacking": ("tar", 1),
    "running the held-out clips": ("run_heldout", 1),
    "comparing the held-out clips": ("compare_heldout", 1),
    "flushing": ("sync", 1),
    "publishing": ("mv", -1),
}
# Where things go wrong in different ways; the other steps of a mishap that takes several runs are in `make test-slow`.
QUICK = {"checking the kit's files", "compiling", "building the last engine", "running the held-out clips", "publishing"}


def steps(quick: set[str] = QUICK) -> list:
    return [step if step in quick else pytest.param(step, marks=pytest.mark.slow) for step in STEPS]


BEFORE_THE_LOCK = {"reading the passport", "checking the kit's files", "checking the held-out clips", "taking the lock"}


@pytest.fixture(scope="module")
def trace(made, tmp_path_factory) -> list[str]:
    """Every call of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("clean")
    device = StubDevice.make(folder / "device", place(*made, folder), list(ENGINES))
    assert device.finish().returncode == 0
    return device.trace()


def arm(device: StubDevice, trace: list[str], step: str, kind: str) -> None:
    name, nth = STEPS[step]
    device.fault(name, trace.count(name) if nth < 0 else nth, kind)


def recover(device: StubDevice, made) -> None:
    """Nothing half or wrong is there; run again, and all is well."""
    if device.result.exists():
        assert_whole(device.result)
    device.clear()
    done = device.finish()
    assert done.returncode == 0, done.stderr
    assert_whole(device.result)
    assert_kit_untouched(device, made)
    assert not (device.kit / "result.part").exists()


def test_the_steps_of_the_table_are_those_that_a_run_takes(trace):
    assert {name for name, _ in STEPS.values()} <= set(trace)
    assert [trace.index(name) for name, nth in STEPS.values() if nth == 1 and name not in ("sha256sum", "mv")] == sorted(trace.index(name) for name, nth in STEPS.values() if nth == 1 and name not in ("sha256sum", "mv"))


@pytest.mark.parametrize("step", STEPS)
def test_a_power_cut(device, made, trace, step):
    arm(device, trace, step, "pause")
    process = device.start()
    assert device.wait(process)
    kill_all(process)
    assert not device.result.exists()
    recover(device, made)


@pytest.mark.parametrize("step", steps())
def test_the_script_alone_is_killed_and_what_it_started_goes_on(device, made, trace, step):
    """kill -9 of finish.sh only: its child still writes, so a second run has to stay out until it is done."""
    arm(device, trace, step, "pause")
    process = device.start()
    assert device.wait(process)
    process.kill()
    process.wait()
    if step not in BEFORE_THE_LOCK:
        second = device.finish()
        assert second.returncode == 5 and "another finish.sh is at work" in second.stderr
    device.go()
    process.communicate(timeout=30)
    subprocess.run(["flock", device.kit / "result.lock", "true"], timeout=30, check=True)  # until the last of them is gone
    recover(device, made)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", ["compiling", "building the last engine", "running the held-out clips"])
def test_a_signal_ends_it_at_once_and_its_child_with_it(device, made, trace, step, number):
    arm(device, trace, step, "pause")
    process = device.start()
    assert device.wait(process)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in err
    assert not device.result.exists()
    recover(device, made)


# Nothing is written before the lock; `sync` writes nothing of its own.
WRITES = [step for step in STEPS if step not in BEFORE_THE_LOCK and step != "flushing"]


@pytest.mark.parametrize("step", [step if step in {*QUICK, "unpacking", "noting the device"} else pytest.param(step, marks=pytest.mark.slow) for step in WRITES])
def test_a_full_disk(device, made, trace, step):
    arm(device, trace, step, "full")
    done = device.finish()
    assert done.returncode != 0 and not device.result.exists(), step
    assert "No space" in done.stderr or "space left" in done.stderr
    recover(device, made)


@pytest.mark.parametrize("step", steps())
def test_the_device_is_updated_in_between(device, made, trace, step):
    """Power cut, another JetPack, run again: refused and nothing is called a result. Back again, it ends well."""
    arm(device, trace, step, "pause")
    process = device.start()
    assert device.wait(process)
    kill_all(process)
    device.clear()
    device.become(tensorrt="8.6.1")
    done = device.finish()
    assert done.returncode == 5 and "tensorrt: expected 8.5.2, found 8.6.1" in done.stderr
    assert not device.result.exists()
    device.become()
    recover(device, made)


@pytest.mark.parametrize("step", steps())
def test_a_second_run_while_the_first_is_at_it(device, made, trace, step):
    arm(device, trace, step, "pause")
    first = device.start()
    assert device.wait(first)
    second = device.finish()
    if step in BEFORE_THE_LOCK:
        assert second.returncode == 0, second.stderr
    else:
        assert second.returncode == 5 and "another finish.sh is at work" in second.stderr
    device.go()
    _, err = first.communicate(timeout=30)
    assert first.returncode == 0, err
    assert_whole(device.result)
    recover(device, made)


def test_a_disk_that_is_really_full(made, tmp_path):
    """The work folder on a file system of a few kB: whatever the step that fails first, nothing is published."""
    small = tmp_path / "small"
    small.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode != 0:
        pytest.skip("needs to mount a small file system")
    try:
        device = StubDevice.make(tmp_path / "device", place(*made, tmp_path), list(ENGINES))
        codes = []
        for kib in (1000, 980, 940, 900, 800, 0):  # what is taken already: less and less room is missing
            filler = small / "filler"
            filler.write_bytes(b"x" * (kib << 10))
            done = device.finish(str(small / "result"))
            codes.append(done.returncode)
            if done.returncode == 0:
                break
            assert not (small / "result").exists() and "space left" in done.stderr.lower()
            filler.unlink()
        assert codes[0] != 0 and codes[-1] == 0, codes
        assert_whole(small / "result")
    finally:
        subprocess.run(["umount", small], check=True)


# the scripts themselves


def test_the_scripts_are_posix_sh(made):
    for path in kits.DEVICE.glob("*.sh"):
        text = path.read_text()
        assert subprocess.run([shutil.which("dash") or "sh", "-n", path]).returncode == 0
        assert not re.search(r"\[\[ |^\s*local |<<<|[= ]\$'|^\s*function ", text, re.M)
    assert str(made[0].parent) not in "".join(path.read_text(errors="replace") for path in made[0].rglob("*.txt"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say():
    ran = subprocess.run(["shellcheck", "-x", "-P", ".", "-s", "sh", "finish.sh", "check.sh"], cwd=kits.DEVICE, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
