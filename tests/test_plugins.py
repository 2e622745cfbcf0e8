"""What installed packages add is found by metadata alone, and a broken one stops nobody but who asks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import backends, models, plugins
from edgekit.errors import TargetError, ToolMissing, UsageError

ROOT = Path(__file__).parents[1]
BACKEND = "EXECUTES = False\ndef versions(target): return {}\nproblems = compile = open = coverage = versions\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution, as an installer would leave it, on sys.path; forgets its modules afterwards."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def install(distribution: str, points: str, **modules: str) -> None:
        info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(points)
        for name, text in modules.items():
            (site / f"{name}.py").write_text(text)

    yield install
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(site)):
            del sys.modules[name]


def test_an_installed_package_adds_a_backend_and_a_model(install):
    install("acme-npu", "[edgekit.backends]\nnpu = acme_npu\n[edgekit.models]\ngaze = acme_gaze\n", acme_npu=BACKEND)
    assert [(p.kind, p.name, p.distribution, p.version, p.module) for p in plugins.third_party()] == [
        ("model", "gaze", "acme-npu", "1.5", "acme_gaze"),
        ("backend", "npu", "acme-npu", "1.5", "acme_npu"),
    ]
    assert backends.get("npu").EXECUTES is False
    assert "acme_gaze" not in sys.modules, "what nobody asked for is not imported"


def test_a_name_that_two_packages_give_is_refused_with_both(install):
    install("acme-npu", "[edgekit.backends]\nnpu = acme_npu\ntensorrt = acme_npu\n", acme_npu=BACKEND)
    install("zeta", "[edgekit.backends]\nnpu = zeta_npu\n")
    with pytest.raises(UsageError, match=r"backend `npu` is given by acme-npu 1.5 and by zeta 1.5"):
        backends.get("npu")
    with pytest.raises(UsageError, match=r"backend `tensorrt` is given by edgekit and by acme-npu 1.5"):
        backends.get("tensorrt")
    assert backends.get("onnxruntime").__name__ == "edgekit.backends.onnxruntime", "a clash elsewhere is no matter"


@pytest.mark.parametrize(
    "text, says",
    [
        ("raise RuntimeError('no licence server')", "RuntimeError: no licence server"),
        ("import there_is_no_such_module", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_broken_package_is_named_and_breaks_no_other(install, text, says):
    install("acme-npu", "[edgekit.backends]\nnpu = acme_npu\n", acme_npu=text)
    assert [p.name for p in plugins.third_party()] == ["npu"]
    assert backends.get("onnxruntime")
    with pytest.raises(ToolMissing, match=rf"backend `npu` of acme-npu 1.5 cannot be imported: .*{says}") as caught:
        backends.get("npu")
    assert "acme-npu" in caught.value.hint


def test_a_module_without_the_protocol_is_refused(install):
    install("acme-npu", "[edgekit.backends]\nnpu = acme_npu\n", acme_npu="EXECUTES = False")
    with pytest.raises(ToolMissing, match=r"backend `npu` of acme-npu 1.5: `acme_npu` has no `versions`, `problems`, `compile`, `open`, `coverage`"):
        backends.get("npu")


def test_an_unknown_name_lists_theirs_beside_ours(install):
    install("acme-npu", "[edgekit.backends]\nnpu = acme_npu\n")
    with pytest.raises(TargetError) as caught:
        backends.get("npx")
    assert "tensorrt" in caught.value.hint and "npu" in caught.value.hint


def test_the_command_line_starts_beside_a_broken_package(install, tmp_path):
    install("acme-npu", "[edgekit.backends]\nnpu = acme_npu\n[edgekit.models]\nnet = acme_npu\n", acme_npu="raise SystemExit('poisoned')")
    environment = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    shown = subprocess.run([sys.executable, "-m", "edgekit", "--help"], env=environment, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and "poisoned" not in shown.stdout + shown.stderr
    planned = subprocess.run([sys.executable, "-m", "edgekit", "plan", str(ROOT / "recipes/mhlt_xavier.yaml"), "--cache", str(tmp_path / "cache")],
                             env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert planned.returncode == 0 and "poisoned" not in planned.stdout + planned.stderr, planned.stderr
    assert models.get("tiny")
