"""An entry is whole or absent, whatever happened while it was made or after."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.artifact import sha256_of
from edgekit.cache import BLOB_BYTES, Cache, key_of
from edgekit.errors import ResourceError, UsageError

ROOT = Path(__file__).parents[1]


def parts(spec=1, stage="prune"):
    return {"stage": stage, "semantics": 1, "spec": {"x": spec}, "inputs": {}, "files": {}, "tools": {}}


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache") as opened:
        yield opened


def put(cache, files, spec=1):
    """Publish an entry; returns its key."""
    key = key_of(parts(spec))
    with cache.locked(key), cache.staging(key, parts(spec)) as staging:
        for name, content in files.items():
            (staging.out / name).parent.mkdir(parents=True, exist_ok=True)
            (staging.out / name).write_bytes(content)
    return key


def test_a_key_is_the_stage_and_the_sha256_of_all_parts():
    assert key_of(parts()) == f"prune-{sha256_of(parts())}"
    for part, value in {"semantics": 2, "spec": {}, "inputs": {"load": "d"}, "files": {"f": "d"}, "tools": {"torch": "2"}}.items():
        assert key_of({**parts(), part: value}) != key_of(parts())


def test_what_was_published_is_found_with_its_digest(cache):
    key = put(cache, {"a/b.txt": b"hello"})
    entry = cache.find(key)
    assert (entry.out / "a/b.txt").read_bytes() == b"hello"
    assert entry.digest and entry.parts == parts() and entry.stage == "prune"
    assert cache.find(key_of(parts(2))) is None


def test_equal_contents_have_equal_digests_under_different_keys(cache):
    first, second = put(cache, {"a": b"1"}, spec=1), put(cache, {"a": b"1"}, spec=2)
    assert first != second and cache.find(first).digest == cache.find(second).digest


def test_a_crash_while_staging_leaves_no_entry_and_keeps_scratch(cache):
    key = key_of(parts())
    with pytest.raises(ZeroDivisionError), cache.locked(key), cache.staging(key, parts()) as staging:
        (staging.out / "half").write_bytes(b"x")
        (staging.scratch / "epoch_1").write_bytes(b"state")
        raise ZeroDivisionError
    assert cache.find(key) is None
    assert list((cache.root / "staging").iterdir()) == []
    with cache.locked(key), cache.staging(key, parts()) as staging:
        assert list(staging.out.iterdir()) == []
        assert (staging.scratch / "epoch_1").read_bytes() == b"state"
        (staging.out / "whole").write_bytes(b"x")
    assert cache.find(key) is not None
    assert list((cache.root / "scratch").iterdir()) == []


KILLED = """
import sys, time
from edgekit.cache import Cache, key_of
parts = {parts!r}
key = key_of(parts)
with Cache({root!r}) as cache, cache.locked(key), cache.staging(key, parts) as staging:
    done = staging.scratch / "epoch_1"
    if done.exists():
        (staging.out / "result").write_bytes(done.read_bytes())
    else:
        done.write_bytes(b"state")
        (staging.out / "half").write_bytes(b"x")
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_publishes_nothing_and_resumes(cache, number):
    script = KILLED.format(parts=parts(), root=str(cache.root))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.wait(timeout=10)
    process.stdout.close()
    key = key_of(parts())
    assert cache.find(key) is None
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=30)
    assert (cache.find(key).out / "result").read_bytes() == b"state"
    assert sorted(file.name for file in cache.find(key).out.iterdir()) == ["result"]
    assert list((cache.root / "staging").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry.out / "a").unlink(),
        lambda entry: (entry.out / "a").write_bytes(b"longer than before"),
        lambda entry: (entry.out / "a").write_bytes(b"2"),  # same size
        lambda entry: (entry.out / "extra").write_bytes(b""),
        lambda entry: ((entry.out / "a").unlink(), (entry.out / "a").symlink_to("/etc/hostname")),
        lambda entry: (entry.path / "entry.json").write_text(""),
        lambda entry: (entry.path / "entry.json").write_text("{}"),
        lambda entry: (entry.path / "entry.json").unlink(),
    ],
    ids=["missing", "size", "content", "extra", "symlink", "empty record", "other record", "no record"],
)
def test_a_damaged_entry_counts_as_absent_and_is_replaced(cache, damage):
    key = put(cache, {"a": b"1"})
    time.sleep(0.01)  # so that the mtime moves on coarse clocks
    damage(cache.find(key))
    assert cache.find(key) is None
    assert put(cache, {"a": b"1"}) == key
    assert (cache.find(key).out / "a").read_bytes() == b"1"


def test_a_touched_file_with_the_same_content_is_no_damage(cache):
    key = put(cache, {"a": b"1"})
    os.utime(cache.find(key).out / "a", (1, 1))
    assert cache.find(key) is not None


def test_a_record_moved_to_another_key_is_not_believed(cache):
    key = put(cache, {"a": b"1"})
    other = key_of(parts(2))
    (cache.root / key).rename(cache.root / other)
    assert cache.find(other) is None


def test_large_files_are_kept_once_and_read_only(cache):
    large = os.urandom(BLOB_BYTES)
    first, second = (cache.find(put(cache, {"w": large, "small": b"1"}, spec=spec)) for spec in (1, 2))
    assert (first.out / "w").stat().st_ino == (second.out / "w").stat().st_ino
    assert (first.out / "small").stat().st_ino != (second.out / "small").stat().st_ino
    assert (first.out / "w").stat().st_mode & 0o222 == 0
    assert len(list((cache.root / "blobs").iterdir())) == 1
    assert cache.size() < 1.5 * BLOB_BYTES


def test_a_damaged_blob_is_not_linked_again(cache):
    large = b"a" * BLOB_BYTES
    first = cache.find(put(cache, {"w": large}, spec=1))
    (first.out / "w").chmod(0o644)
    (first.out / "w").write_bytes(b"b" * BLOB_BYTES)
    second = cache.find(put(cache, {"w": large}, spec=2))
    assert (second.out / "w").read_bytes() == large
    assert cache.find(first.key) is None


def test_a_full_disk_is_said_as_such_and_nothing_is_left(cache):
    key = key_of(parts())
    with pytest.raises(ResourceError) as caught, cache.locked(key), cache.staging(key, parts()) as staging:
        (staging.out / "half").write_bytes(b"x")
        with open("/dev/full", "wb", buffering=0) as full:  # a real ENOSPC
            full.write(b"x")
    assert "no space left" in str(caught.value) and "hint:" in str(caught.value) and caught.value.exit_code == 5
    assert cache.find(key) is None and list((cache.root / "staging").iterdir()) == []


def test_a_full_disk_reported_by_a_library_in_its_own_error_is_recognised(cache):
    key = key_of(parts())
    with pytest.raises(ResourceError, match="no space"), cache.locked(key), cache.staging(key, parts()):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_missing_permission_names_the_path(cache):
    key = key_of(parts())
    with pytest.raises(ResourceError, match="/data/clip.wav: no permission"), cache.locked(key), cache.staging(key, parts()):
        raise PermissionError(13, "Permission denied", "/data/clip.wav")


def test_a_bug_stays_what_it_is(cache):
    key = key_of(parts())
    with pytest.raises(KeyError), cache.locked(key), cache.staging(key, parts()):
        raise KeyError("x")


def test_a_cache_that_is_a_file_is_said_as_such(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UsageError, match="cache: not a folder"):
        Cache(tmp_path / "cache")
    with pytest.raises(UsageError, match="inside: cannot be made, .*cache is not a folder"):
        Cache(tmp_path / "cache/inside")


def _build_in_process(root, log):
    with Cache(root) as cache:
        key = key_of(parts())
        with cache.locked(key):
            if cache.find(key) is None:
                with cache.staging(key, parts()) as staging:
                    with open(log, "a") as file:
                        file.write("built\n")
                    time.sleep(0.2)
                    (staging.out / "a").write_bytes(b"1")
        assert cache.find(key) is not None


def test_two_builds_of_one_key_build_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_build_in_process, args=(tmp_path / "cache", tmp_path / "log")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def test_gc_deletes_the_least_recently_used_first(cache):
    keys = [put(cache, {"a": os.urandom(1000)}, spec=spec) for spec in range(3)]
    for age, key in enumerate([keys[1], keys[2], keys[0]]):  # 1 is oldest
        os.utime(cache.root / key / "entry.json", (1000 + age, 1000 + age))
    removed, freed = cache.gc(cache.size() - 100)
    assert removed == [keys[1]] and freed > 1000
    assert cache.find(keys[0]) and cache.find(keys[2])


def test_gc_never_deletes_an_entry_in_use(tmp_path):
    with Cache(tmp_path) as user, Cache(tmp_path) as cleaner:
        used, unused = put(user, {"a": b"1"}, spec=1), put(user, {"a": b"1"}, spec=2)
        user.hold(used)
        removed, _ = cleaner.gc(0)
        assert removed == [unused] and user.find(used) is not None
        user.close()
        assert cleaner.gc(0)[0] == [used]


def test_gc_leaves_a_build_under_way_alone_and_clears_dead_ones(tmp_path):
    with Cache(tmp_path) as builder, Cache(tmp_path) as cleaner:
        key = key_of(parts())
        with builder.locked(key), builder.staging(key, parts()) as staging:
            (tmp_path / "staging" / "prune-dead.123" / "out").mkdir(parents=True)
            cleaner.gc(0)
            assert staging.out.is_dir() and staging.scratch.is_dir()
            assert not (tmp_path / "staging" / "prune-dead.123").exists()
        assert builder.find(key) is not None


def test_gc_drops_blobs_that_no_entry_links(cache):
    put(cache, {"w": os.urandom(BLOB_BYTES)})
    cache.gc(0)
    assert list((cache.root / "blobs").iterdir()) == [] and cache.entries() == []


def test_gc_leaves_generated_clips(cache):
    (cache.root / "data").mkdir(parents=True)
    (cache.root / "data/clip").write_bytes(b"1" * 1000)
    cache.gc(0)
    assert (cache.root / "data/clip").exists()


def test_verify_finds_a_flipped_bit_that_size_and_mtime_hide(cache):
    key = put(cache, {"w": b"a" * BLOB_BYTES, "small": b"1"})
    path = cache.find(key).out / "w"
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.find(key) is not None
    assert len(cache.verify()) == 1
    assert cache.find(key) is None
    assert put(cache, {"w": b"a" * BLOB_BYTES, "small": b"1"}) == key
    assert cache.verify() == []


def test_history_of_stages_that_a_build_did_not_reach_is_kept(cache):
    cache.remember("toy", {"load": parts(1, "load"), "prune": parts(1)})
    cache.remember("toy", {"load": parts(2, "load")})
    stages = cache.recall("toy")["stages"]
    assert stages["load"]["parts"]["spec"] == {"x": 2} and stages["prune"]["parts"]["spec"] == {"x": 1}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": 1}'])
def test_a_damaged_history_is_an_empty_one(cache, text):
    (cache.root / "history").mkdir(parents=True)
    (cache.root / "history/toy.json").write_text(text)
    assert cache.recall("toy") == {}


def test_a_listing_names_size_and_recipe(cache):
    key = put(cache, {"a": b"1"})
    cache.remember("toy", {"prune": parts()})
    (row,) = cache.listing()
    assert row["key"] == key and row["stage"] == "prune" and row["recipes"] == ["toy"]
    assert json.loads(json.dumps(row)) == row
