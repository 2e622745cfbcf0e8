"""What a build leaves behind, and what it leaves alone."""

from __future__ import annotations

import io
import os
import tarfile
import time

import pytest
import zstandard

import edgekit
from edgekit.build import Result, build_all
from edgekit.cache import Cache
from edgekit.errors import DataError, RecipeError, ResourceError, TargetError, UsageError
from edgekit.recipe import load_recipe

RECIPE = "recipes/toy.yaml"


@pytest.fixture(autouse=True)
def _here(workspace, fake_stages):
    return workspace


def members(archive):
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive.read_bytes())) as raw:
        return {m.name: m for m in tarfile.open(fileobj=io.BytesIO(raw.read()))}


def state(folder):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in [folder, *folder.rglob("*")]}


def test_a_build_leaves_a_bundle_and_its_archive(workspace, fake_stages):
    result = edgekit.build(RECIPE)
    assert result.ran == ("load", "prune", "quantize", "package") == tuple(fake_stages.ran)
    assert result.exit_code == 0 and result.report["verdict"] == "pass"
    assert sorted(p.name for p in (workspace / "build").iterdir()) == ["toy", "toy.tar.zst"]
    assert sorted(p.name for p in (workspace / "build/toy").iterdir()) == ["build.sh", "model.onnx", "report.json"]
    assert (workspace / "build/toy/build.sh").stat().st_mode & 0o777 == 0o755
    assert (workspace / "build/toy/model.onnx").stat().st_mode & 0o777 == 0o644


def test_an_archive_depends_on_contents_only(workspace):
    edgekit.build(RECIPE)
    first = (workspace / "build/toy.tar.zst").read_bytes()
    for member in members(workspace / "build/toy.tar.zst").values():
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    time.sleep(0.01)
    edgekit.build(RECIPE, cache_root="other", out="elsewhere")
    assert (workspace / "elsewhere/toy.tar.zst").read_bytes() == first


def test_an_unchanged_build_runs_nothing_and_touches_nothing(workspace):
    edgekit.build(RECIPE)
    before = state(workspace / "build")
    again = edgekit.build(RECIPE)
    assert again.ran == () and state(workspace / "build") == before


@pytest.mark.parametrize("name", ["toy/model.onnx", "toy.tar.zst"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")], ids=["deleted", "changed"])
def test_a_damaged_result_is_laid_out_again(workspace, name, damage):
    edgekit.build(RECIPE)
    path = workspace / "build" / name
    good = path.read_bytes()
    damage(path)
    assert edgekit.build(RECIPE).ran == ()
    assert path.read_bytes() == good


def test_what_a_device_wrote_beside_the_bundle_stays(workspace):
    edgekit.build(RECIPE)
    (workspace / "build/toy/result").mkdir()
    (workspace / "build/toy/result/log").write_text("from the device")
    edgekit.build(RECIPE)
    assert (workspace / "build/toy/result/log").exists()


def test_a_failed_gate_leaves_the_report_and_nothing_flashable(workspace, fake_stages):
    edgekit.build(RECIPE)
    result = edgekit.build(RECIPE, ["gates.mae.max_increase=0.001"])
    assert result.ran == ("package",) and result.exit_code == 3 and result.archive is None
    assert [str(p.relative_to(workspace / "build")) for p in sorted((workspace / "build").rglob("*"))] == ["toy", "toy/report.json"]
    assert edgekit.build(RECIPE).exit_code == 0
    assert (workspace / "build/toy.tar.zst").exists()


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("pending-device", 0), ("fail", 3), ("inconclusive", 3)])
def test_only_a_decided_pass_ships(fake_stages, verdict, code):
    def run(job):
        (job.out / "bundle").mkdir()
        (job.out / "bundle/report.json").write_text(f'{{"verdict": "{verdict}"}}')

    fake_stages.run_package = run
    result = edgekit.build(RECIPE)
    assert result.exit_code == code and (result.archive is None) == (code == 3)


def test_the_target_is_checked_right_after_load(fake_stages, workspace):
    fake_stages.ops = {"opset": 17, "ops": [{"engine": "main", "op": "Einsum", "rank": 3, "dtype": "float32", "count": 1}]}
    with pytest.raises(TargetError, match="Einsum"):
        edgekit.build(RECIPE)
    assert fake_stages.ran == ["load"] and not (workspace / "build").exists()


def test_a_failed_stage_leaves_the_last_bundle_and_resumes_from_its_scratch(fake_stages, workspace):
    edgekit.build(RECIPE)
    before = state(workspace / "build")
    attempts = []

    def run(job):
        attempts.append((job.scratch / "epoch").exists())
        (job.scratch / "epoch").write_text("1")
        (job.out / "half").write_text("")
        if len(attempts) == 1:
            raise DataError("a clip is broken")
        (job.out / "half").rename(job.out / "whole")

    fake_stages.run_prune = run
    with pytest.raises(DataError):
        edgekit.build(RECIPE, ["prune.macs=0.5"])
    assert state(workspace / "build") == before
    edgekit.build(RECIPE, ["prune.macs=0.5"])
    assert attempts == [False, True]


def test_an_interrupted_stage_leaves_nothing_half_written(fake_stages, workspace):
    def run(job):
        (job.out / "half").write_text("")
        raise KeyboardInterrupt

    fake_stages.run_quantize = run
    with pytest.raises(KeyboardInterrupt):
        edgekit.build(RECIPE)
    assert list((workspace / ".edgekit/staging").iterdir()) == [] and not (workspace / "build").exists()
    del fake_stages.run_quantize
    assert edgekit.build(RECIPE).ran == ("quantize", "package")


def test_a_full_disk_while_laying_out_leaves_the_last_bundle(workspace, monkeypatch):
    edgekit.build(RECIPE)
    before = state(workspace / "build")

    def full(source, archive):
        archive.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(archive))

    monkeypatch.setattr("edgekit.build.pack", full)
    with pytest.raises(ResourceError, match="no space left"):
        edgekit.build(RECIPE, ["gates.mae.max_increase=0.02"])
    after = state(workspace / "build")
    assert after.keys() == before.keys()
    assert {k: v for k, v in after.items() if k != str(workspace / "build")} == {k: v for k, v in before.items() if k != str(workspace / "build")}


def test_a_folder_that_is_not_a_bundle_is_never_replaced(workspace):
    (workspace / "build/toy").mkdir(parents=True)
    (workspace / "build/toy/thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not a bundle of ours"):
        edgekit.build(RECIPE)
    assert (workspace / "build/toy/thesis.tex").exists() and not (workspace / "build/toy.tar.zst").exists()


def test_recipes_share_stages_and_all_are_tried(workspace, fake_stages):
    text = (workspace / RECIPE).read_text()
    (workspace / "recipes/b.yaml").write_text(text.replace("name: toy", "name: b").replace("percentile", "minmax"))
    (workspace / "recipes/c.yaml").write_text(text.replace("name: toy", "name: c").replace("max_increase: 0.01", "max_increase: 0.001"))
    broken = RecipeError("broken")
    outcomes = list(build_all([load_recipe("recipes/b.yaml"), broken, load_recipe("recipes/c.yaml"), load_recipe(RECIPE)]))
    assert [o.exit_code for o in outcomes] == [0, 2, 3, 0]
    assert [o.ran for o in outcomes if isinstance(o, Result)] == [("load", "prune", "quantize", "package"), ("quantize", "package"), ("package",)]


def test_a_stage_sees_only_what_is_in_its_key(fake_stages):
    seen = {}

    def run(job):
        seen["inputs"], seen["spec"], seen["files"] = set(job.inputs), job.spec, job.files
        assert list(job.out.iterdir()) == []
        fake_stages.run_any(job)

    fake_stages.run_quantize = run
    edgekit.build(RECIPE)
    assert seen == {"inputs": {"prune"}, "spec": {"observer": "percentile", "skip": []}, "files": {}}


def test_entries_of_a_running_build_are_in_use(fake_stages):
    found = []

    def run(job):
        with Cache(job.cache_root) as cleaner:
            cleaner.gc(0)
            found.extend(key.partition("-")[0] for key in cleaner.entries())
        fake_stages.run_any(job)

    fake_stages.run_quantize = run
    edgekit.build(RECIPE)
    assert sorted(found) == ["load", "prune"]


def test_an_unchanged_build_takes_far_less_than_two_seconds():
    edgekit.build(RECIPE)
    before = time.process_time()
    edgekit.build(RECIPE)
    assert time.process_time() - before < 1  # CPU seconds, so that a busy machine does not fail it


def test_the_public_name_is_callable_whichever_way_it_was_imported():
    import edgekit.build as module

    assert edgekit.build is module and callable(module)
    assert os.path.basename(str(edgekit.build(RECIPE).bundle)) == "toy"
