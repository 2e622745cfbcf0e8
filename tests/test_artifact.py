"""Digests are of contents only, are remembered, and are not fooled."""

from __future__ import annotations

import hashlib
import json
import os
import time

import pytest

from edgekit import artifact
from edgekit.artifact import FileSource, canonical_json, directory_digest, file_digest
from edgekit.errors import DataError, IntegrityError


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    fresh = artifact.DigestMemory()
    monkeypatch.setattr(artifact, "MEMORY", fresh)
    return fresh


def settle(path):
    """Give a file an mtime that is old enough to be trusted."""
    old = time.time_ns() - 10 * 10**9
    os.utime(path, ns=(old, old))


def test_canonical_json_sorts_keys_and_has_no_spaces():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_numbers_that_json_lacks(value):
    with pytest.raises(ValueError):
        canonical_json({"x": value})


def test_a_path_cannot_enter_a_key_as_text(tmp_path):
    with pytest.raises(TypeError):
        canonical_json({"checkpoint": tmp_path})


def test_a_file_digest_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert FileSource(tmp_path / "a").digest() == hashlib.sha256(b"abc").hexdigest()


def test_an_unchanged_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    settle(path)
    first = file_digest(path)
    monkeypatch.setattr(artifact, "hash_file", lambda path: pytest.fail("read again"))
    assert file_digest(path) == first


def test_a_file_written_just_now_is_not_remembered(tmp_path, memory):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    file_digest(path)
    assert memory.files == {}


def test_a_changed_file_of_equal_size_is_read_again(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    settle(path)
    before = file_digest(path)
    path.write_bytes(b"abd")
    assert file_digest(path) != before


def test_a_replaced_file_of_equal_size_and_mtime_is_read_again(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    settle(path)
    before = file_digest(path)
    (tmp_path / "b").write_bytes(b"abd")
    os.utime(tmp_path / "b", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (tmp_path / "b").replace(path)  # another inode
    assert file_digest(path) != before


def test_the_memory_survives_on_disk(tmp_path, memory):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    settle(path)
    memory.attach(tmp_path / "digests.json")
    file_digest(path)
    memory.save()
    later = artifact.DigestMemory()
    later.attach(tmp_path / "digests.json")
    assert later.files == memory.files != {}


@pytest.mark.parametrize("text", ["", "[]", "{broken", '{"a": 1}', '{"a": [1, 2, 3, 4]}', "\x00"])
def test_a_damaged_memory_is_an_empty_one(tmp_path, text):
    (tmp_path / "digests.json").write_text(text)
    memory = artifact.DigestMemory()
    memory.attach(tmp_path / "digests.json")
    assert memory.files == {}


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path, memory):
    (tmp_path / "file").write_text("")
    memory.attach(tmp_path / "file" / "digests.json")
    memory.files["a"], memory.is_dirty = [1, 2, 3, "x"], True
    memory.save()


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        file_digest(tmp_path / "a")
    with pytest.raises(DataError, match="not a plain file"):
        file_digest(tmp_path)


def test_a_directory_digest_is_that_of_sorted_names_and_contents(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"2")
    (tmp_path / "empty").mkdir()
    pairs = [["a", hashlib.sha256(b"2").hexdigest()], ["b/c", hashlib.sha256(b"1").hexdigest()]]
    want = hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()
    assert directory_digest(tmp_path) == want


@pytest.mark.parametrize("change", ["rename", "content", "extra"])
def test_a_directory_digest_sees_names_contents_and_extra_files(tmp_path, change):
    (tmp_path / "a").write_bytes(b"1")
    before = directory_digest(tmp_path)
    {
        "rename": lambda: (tmp_path / "a").rename(tmp_path / "b"),
        "content": lambda: (tmp_path / "a").write_bytes(b"2"),
        "extra": lambda: (tmp_path / "b").write_bytes(b"1"),
    }[change]()
    assert directory_digest(tmp_path) != before


def test_a_symlink_in_a_directory_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError, match="link"):
        directory_digest(tmp_path)
