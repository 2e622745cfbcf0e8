"""Builds finished on a device over ssh: against a real sshd on loopback and a stub device behind it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit import device as devices
from edgekit.device import Address
from edgekit.errors import EdgekitError, IntegrityError, ToolMissing, UsageError
from tests.backends.tensorrt.kits import ENGINES, make_bundle
from tests.backends.tensorrt.stub_device import StubDevice
from tests.backends.tensorrt.test_finish import BEFORE_THE_LOCK, STEPS, assert_whole, steps
from tests.small_project import make_project

SSHD = shutil.which("sshd") or next((path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if os.access(path, os.X_OK)), None)
needs_sshd = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None or shutil.which("flock") is None, reason="needs sshd, ssh and flock: apt-get install openssh-server")

ENTRY = """#!/bin/sh
# What every ssh session runs: the stub's world as its own.
cd "{home}"
export HOME="{home}" PATH="{path}" STUB="{stub}" EK_ROOT="{system}"
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""


# addresses


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ssh://nvidia@xavier", Address("xavier", "nvidia", None)),
        ("ssh://xavier-7.local:2222", Address("xavier-7.local", None, 2222)),
        ("ssh://nvidia@192.168.55.1/", Address("192.168.55.1", "nvidia", None)),
        ("ssh://me@[fe80::1%eth0]:22", Address("fe80::1%eth0", "me", 22)),
    ],
)
def test_an_address_is_read(text, want):
    assert Address.parse(text) == want


@pytest.mark.parametrize("text", ["xavier", "http://xavier", "ssh://", "ssh://-oProxyCommand=reboot", "ssh://-x@xavier", "ssh://a b", "ssh://u:secret@x", "ssh://x:99999", "ssh://x/path", "ssh://x$(reboot)"])
def test_what_is_no_address_or_would_be_an_option_is_refused(text):
    with pytest.raises(UsageError):
        Address.parse(text)


def test_ssh_never_asks_and_never_skips_the_host_check(monkeypatch):
    monkeypatch.setenv(devices.SSH_VARIABLE, "env")
    words = devices._argv(Address("xavier", "nvidia", 2222), "true")
    assert words[-3:-1] == ["--", "xavier"] and "BatchMode=yes" in words and words[words.index("-p") + 1] == "2222" and words[words.index("-l") + 1] == "nvidia"
    assert "stricthostkeychecking" not in " ".join(words).lower() and "userknownhostsfile" not in " ".join(words).lower()


def test_a_missing_ssh_is_named(monkeypatch):
    monkeypatch.setenv(devices.SSH_VARIABLE, "/nowhere/ssh")
    with pytest.raises(ToolMissing, match="/nowhere/ssh: not found"):
        devices.require(Address("xavier"))


def test_a_recipe_of_another_kind_is_refused_before_anything_runs(tmp_path, monkeypatch):
    project = make_project(tmp_path / "car")
    monkeypatch.chdir(project.root)
    done = project.run("build", "car.yaml", "target=onnxruntime_x86", "--device", "ssh://nobody@nowhere.invalid")
    assert done.exit_code == 2 and "nothing of onnxruntime_x86 is finished on a device" in done.stderr and not project.stages()


# a real sshd


@dataclass
class Loopback:
    """sshd on a port of its own, a key that it takes, and the client's configuration."""

    folder: Path
    port: int
    process: subprocess.Popen

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", getpass.getuser(), self.port)

    def sessions(self) -> list[int]:
        """Process ids of the ssh clients that are connected."""
        return [int(path.read_text()) for path in sorted(self.folder.glob("client.*"))]

    def point_to(self, device: StubDevice) -> None:
        home = device.root / "home"
        home.mkdir(exist_ok=True)
        text = ENTRY.format(home=home, path=device.environment["PATH"], stub=device.stub, system=device.system)
        (self.folder / "entry.new").write_text(text)
        (self.folder / "entry.new").chmod(0o755)
        (self.folder / "entry.new").rename(self.folder / "entry.sh")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / f"{name}_key"], check=True)
    shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile {folder}/pid\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nForceCommand {folder}/entry.sh\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it separates its privileges
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", folder / "sshd_config"], stderr=(folder / "log").open("w"))
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "config").write_text(f"IdentityFile {folder}/client_key\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n")
    # As ssh, with the client's configuration and its process id in a file.
    (folder / "ssh").write_text(f'#!/bin/sh\necho $$ >{folder}/client.$$\ntrap "" PIPE\nexec ssh -F {folder}/config "$@"\n')
    (folder / "ssh").chmod(0o755)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    yield Loopback(folder, port, process)
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def device(sshd, tmp_path, monkeypatch):
    monkeypatch.setenv(devices.SSH_VARIABLE, str(sshd.folder / "ssh"))
    for path in sshd.folder.glob("client.*"):
        path.unlink()
    found = StubDevice.make(tmp_path / "device", tmp_path / "none", list(ENGINES))
    sshd.point_to(found)
    return found


def finish(made, sshd: Loopback, into: Path) -> Path:
    return devices.finish(made[0], made[1], sshd.address, into)


def result_there(device: StubDevice) -> list[Path]:
    return list((device.root / "home").glob(".edgekit/kits/*/result"))


def until_quiet(device: StubDevice) -> None:
    """Nobody holds the lock on the device any more."""
    for lock in (device.root / "home").glob(".edgekit/kits/*/result.lock"):
        subprocess.run(["flock", lock, "true"], timeout=30, check=True)


@needs_sshd
def test_a_bundle_is_finished_over_ssh_and_its_result_comes_back(made, sshd, device, tmp_path):
    devices.require(sshd.address)
    result = finish(made, sshd, tmp_path / "a")
    assert_whole(result)
    [kit] = (device.root / "home").glob(".edgekit/kits/*/kit")
    assert {str(p.relative_to(kit)) for p in kit.rglob("*") if p.is_file()} == {str(p.relative_to(made[0])) for p in made[0].rglob("*") if p.is_file()} - {"manifest.json"}
    assert (kit / "finish.sh").stat().st_mode & 0o100
    before = {path: path.stat().st_mtime_ns for path in kit.rglob("*")} | {kit.parent / "heldout.tar": (kit.parent / "heldout.tar").stat().st_mtime_ns}
    assert_whole(finish(made, sshd, tmp_path / "b"))
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing was sent again"
    assert sum(call.startswith("build") for call in (device.stub / "calls").read_text().splitlines()) == len(ENGINES)


@needs_sshd
def test_a_host_whose_key_is_not_known_is_refused(sshd, device, monkeypatch):
    known = (sshd.folder / "known_hosts").read_text()
    for text in ("", known.replace("AAAAC3", "AAAAC4"), known.replace(known.split()[2], (sshd.folder / "client_key.pub").read_text().split()[1])):
        (sshd.folder / "known_hosts").write_text(text)
        try:
            with pytest.raises(ToolMissing, match="[Hh]ost key verification failed"):
                devices.require(sshd.address)
        finally:
            (sshd.folder / "known_hosts").write_text(known)
    assert not (device.root / "home/.edgekit").exists()


@needs_sshd
def test_a_key_that_is_not_taken_fails_at_once_and_asks_nothing(sshd, device):
    taken = (sshd.folder / "authorized_keys").read_text()
    (sshd.folder / "authorized_keys").write_text("")
    try:
        with pytest.raises(ToolMissing, match="Permission denied"):
            devices.require(sshd.address)
    finally:
        (sshd.folder / "authorized_keys").write_text(taken)


@needs_sshd
def test_finish_sh_says_why_it_refuses_and_the_exit_code_is_its_own(made, sshd, device, tmp_path):
    device.become(tensorrt="8.6.1")
    with pytest.raises(ToolMissing, match="tensorrt: expected 8.5.2, found 8.6.1") as caught:
        finish(made, sshd, tmp_path / "a")
    assert caught.value.exit_code == 5 and not result_there(device)
    device.become()
    for mark, code in (("refuses", 4), ("off", 3)):
        (device.stub / mark).touch()
        with pytest.raises(EdgekitError) as caught:
            finish(made, sshd, tmp_path / mark)
        assert caught.value.exit_code == code and not result_there(device)
        (device.stub / mark).unlink()
    assert_whole(finish(made, sshd, tmp_path / "b"))


@needs_sshd
def test_what_arrived_damaged_is_sent_again(made, sshd, device, tmp_path):
    finish(made, sshd, tmp_path / "a")
    [kit] = (device.root / "home").glob(".edgekit/kits/*/kit")
    (kit / "flow.txt").write_text("damaged")
    (kit.parent / "heldout.tar").write_text("damaged")
    assert_whole(finish(made, sshd, tmp_path / "b"))
    assert (kit / "flow.txt").read_bytes() == (made[0] / "flow.txt").read_bytes()


@needs_sshd
def test_a_result_that_would_leave_its_folder_is_refused(made, sshd, device, tmp_path):
    finish(made, sshd, tmp_path / "a")
    [result] = result_there(device)
    # A device that sends a link out of the folder: `tar` on it is the device's own.
    (device.root / "bin/tar").write_text('#!/bin/sh\nif [ "$1" = -cf ]; then ln -s /etc/passwd result/link; fi\nexec /usr/bin/tar "$@"\n')
    with pytest.raises(IntegrityError, match="link"):
        finish(made, sshd, tmp_path / "b")
    assert result.is_dir()


# every step, over the wire

QUICK = {"building the last engine"}


class Running(threading.Thread):
    """devices.finish in the background, up to the fault's point."""

    def __init__(self, made, sshd: Loopback, device: StubDevice, into: Path, step: str, count: int):
        super().__init__(daemon=True)
        self.work = lambda: finish(made, sshd, into)
        self.error: BaseException | None = None
        name, nth = STEPS[step]
        device.fault(name, count if nth < 0 else nth, "pause")
        self.start()
        for _ in range(3000):
            if (device.stub / "reached").exists():
                return
            assert self.is_alive(), self.error
            time.sleep(0.01)
        raise AssertionError(f"{step} was never reached")

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error


@pytest.fixture
def there(made, sshd, device, tmp_path):
    """The kit and the clips lie on the device already, so that only finish.sh is left to be disturbed."""
    folder = f".edgekit/kits/{devices.hash_file(made[0] / 'SHA256SUMS')[:32]}"
    home = device.root / "home" / folder
    home.mkdir(parents=True)
    shutil.copytree(made[0], home / "kit")
    (home / "kit/manifest.json").unlink()
    shutil.copyfile(made[1], home / "heldout.tar")
    return home


def armed(step: str) -> tuple[str, int]:
    name, nth = STEPS[step]
    # _HAS_KIT sums twice and _HAS_HELDOUT once, before finish.sh sums anything.
    return name, nth + 3 if name == "sha256sum" else nth


@pytest.fixture(scope="module")
def moves(made, tmp_path_factory) -> int:
    """How many `mv` a clean run takes: the last one publishes."""
    from tests.backends.tensorrt.kits import place

    folder = tmp_path_factory.mktemp("moves")
    stub = StubDevice.make(folder / "device", place(*made, folder), list(ENGINES))
    assert stub.finish().returncode == 0
    return stub.trace().count("mv")


def begin(made, sshd, device, tmp_path, step, moves, monkeypatch) -> Running:
    monkeypatch.setitem(STEPS, step, armed(step))
    return Running(made, sshd, device, tmp_path / "first", step, moves)


@needs_sshd
@pytest.mark.parametrize("step", steps(QUICK))
def test_the_connection_is_cut(made, sshd, device, there, tmp_path, step, moves, monkeypatch):
    running = begin(made, sshd, device, tmp_path, step, moves, monkeypatch)
    for pid in sshd.sessions():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.join(30)
    assert isinstance(running.error, ToolMissing) and not running.is_alive()
    time.sleep(0.2)  # the device learns of it
    device.go()
    until_quiet(device)
    for result in result_there(device):  # it may have been at its last move
        assert_whole(result)
    device.clear()
    assert_whole(finish(made, sshd, tmp_path / "second"))


@needs_sshd
@pytest.mark.parametrize("step", steps(QUICK))
def test_finish_sh_is_killed_over_there(made, sshd, device, there, tmp_path, step, moves, monkeypatch):
    running = begin(made, sshd, device, tmp_path, step, moves, monkeypatch)
    found = subprocess.run(["pgrep", "-f", "sh finish.sh --heldout ../heldout.tar"], capture_output=True, text=True).stdout.split()
    mine = [int(pid) for pid in found if Path(f"/proc/{pid}/cwd").exists() and os.readlink(f"/proc/{pid}/cwd") == str(there / "kit")]
    assert mine
    for pid in mine:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    device.go()
    running.join(30)
    assert isinstance(running.error, EdgekitError) and not running.is_alive()
    until_quiet(device)
    for result in result_there(device):  # it was at its last move, which went on without it
        assert_whole(result)
    device.clear()
    assert_whole(finish(made, sshd, tmp_path / "second"))


@needs_sshd
@pytest.mark.parametrize("step", [step if step in QUICK else pytest.param(step, marks=pytest.mark.slow) for step in STEPS if step not in BEFORE_THE_LOCK])
def test_a_second_build_is_refused_and_the_first_ends_well(made, sshd, device, there, tmp_path, step, moves, monkeypatch):
    running = begin(made, sshd, device, tmp_path, step, moves, monkeypatch)
    with pytest.raises(ToolMissing, match="another finish.sh is at work"):
        finish(made, sshd, tmp_path / "second")
    device.go()
    running.join(60)
    assert running.error is None
    assert_whole(tmp_path / "first/fetched/result")


# from the recipe to the measured bundle


@needs_sshd
def test_build_with_a_device_leaves_the_measured_bundle_beside_the_hosts(sshd, device, tmp_path, monkeypatch):
    project = make_project(tmp_path / "car")
    monkeypatch.chdir(project.root)
    for engine in ("step", "head"):
        (device.stub / f"layers/{engine}.json").write_text('{"Layers": [{"Name": "x", "Inputs": []}]}\n')
    arguments = ("build", "car.yaml", "--device", str(sshd.address), "--json")
    done = project.run(*arguments, "gates={mae: {max_increase: 2.0}, latency_ms: {max: 6}}")
    assert done.exit_code == 0, done.stderr
    import json

    host, measured = [json.loads(line) for line in done.stdout.splitlines()][:2]
    assert (host["recipe"], host["verdict"]) == ("car", "pending-device")
    assert (measured["recipe"], measured["verdict"], measured["measured_on"]) == ("car-measured", "pass", "Jetson-AGX, sm_72, TensorRT 8.5.2")
    assert {gate["name"]: gate["verdict"] for gate in measured["gates"]} == {"mae": "pass", "latency_ms": "pass"}
    assert Path("build/car-measured.tar.zst").is_file() and Path("build/car.tar.zst").is_file()
    (device.stub / "off").touch()
    failed = project.run(*arguments, "quantize.observer=minmax")
    assert failed.exit_code == 3 and "o is off" in failed.stderr
