"""Bundles are opened by people who did not make them: every hostile archive here must be refused, whole."""

import io
import json
import os
import tarfile

import pytest
import zstandard

from edgekit.bundle import MANIFEST, file_table, open_bundle, pack, sealed
from edgekit.errors import DataError, IntegrityError


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "xavier"
    (path / "engines/main").mkdir(parents=True)
    (path / "engines/main/model.onnx").write_bytes(bytes(range(256)) * 20)
    (path / "build.sh").write_text("#!/bin/sh\n")
    (path / "report.json").write_text('{"verdict": "pass"}')
    (path / MANIFEST).write_text(json.dumps(sealed({"name": "xavier", "files": file_table(path)})))
    return path


@pytest.fixture
def archive(tmp_path):
    """Write a `.tar.zst` of hand-made members: (TarInfo, content) or (name, content)."""

    def write(*members, name="evil.tar.zst"):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for member, content in members:
                info = tarfile.TarInfo(member) if isinstance(member, str) else member
                info.size = len(content) if info.isreg() else 0
                tar.addfile(info, io.BytesIO(content))
        path = tmp_path / name
        path.write_bytes(zstandard.compress(raw.getvalue()))
        return path

    return write


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_packed_bundle_opens_with_the_same_files_and_verifies(folder, tmp_path):
    pack(folder, tmp_path / "x.tar.zst")
    with open_bundle(tmp_path / "x.tar.zst") as bundle:
        bundle.verify()
        assert bundle.manifest["name"] == "xavier"
        assert bundle.report == {"verdict": "pass"}
        assert file_table(bundle.path) == file_table(folder)
        assert os.access(bundle.path / "build.sh", os.X_OK)
        extracted = bundle.path
    assert not extracted.exists()


def test_a_folder_is_opened_in_place_and_stays(folder):
    with open_bundle(folder) as bundle:
        bundle.verify()
    assert folder.is_dir()


def test_equal_folders_pack_to_equal_bytes(folder, tmp_path):
    first = pack(folder, tmp_path / "a.tar.zst")
    os.utime(folder / "build.sh", (1, 1))
    os.chmod(folder / "report.json", 0o600)
    assert pack(folder, tmp_path / "b.tar.zst") == first


@pytest.mark.parametrize("damage, named", [
    (lambda f: (f / "report.json").write_text('{"verdict": "fail"}'), "`report.json` does not match its sha256"),
    (lambda f: (f / "build.sh").write_text("#!/bin/sh\nrm"), "`build.sh` has 12 bytes, the manifest says 10"),
    (lambda f: (f / "build.sh").unlink(), "`build.sh` is missing"),
    (lambda f: (f / "engines/extra.bin").write_bytes(b"x"), "`engines/extra.bin` is not in the manifest"),
    (lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text().replace("xavier", "javier")), "manifest.json: does not match its own sha256"),
    (lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text().replace('"xavier"', "NaN")), "manifest.json: does not match its own sha256"),
])  # fmt: skip
def test_changed_missing_and_extra_files_are_named(folder, damage, named):
    damage(folder)
    with pytest.raises(IntegrityError, match=named) as caught:
        open_bundle(folder).verify()
    assert caught.value.exit_code == 6


def test_what_the_device_adds_is_not_part_of_the_bundle(folder):
    (folder / "result").mkdir()
    (folder / "result/engine.plan").write_bytes(b"x")
    open_bundle(folder).verify()


@pytest.mark.parametrize("name", [
    "/etc/passwd", "../up", "a/../../up", "a/..", "./a", "a//b", "C:/x", "c:x", "a\\b", "\\\\host\\x",
    "new\nline", "bell\x07", "\u202egnp.exe", "nul", "a/CON.txt", "dot.", "space ", "x" * 2000,
])  # fmt: skip
def test_names_that_leave_the_folder_or_trick_the_reader_are_refused(archive, tmp_path, name):
    path = archive(("good.txt", b"1"), (name, b"evil"))
    with pytest.raises(IntegrityError) as caught:
        open_bundle(path, into=tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing half-written"
    assert "\n" not in caught.value.message and "\x07" not in caught.value.message


@pytest.mark.parametrize("member", [
    special("link", tarfile.SYMTYPE, "/etc/passwd"),
    special("link", tarfile.SYMTYPE, "good.txt"),
    special("hard", tarfile.LNKTYPE, "good.txt"),
    special("pipe", tarfile.FIFOTYPE),
    special("null", tarfile.CHRTYPE),
    special("disk", tarfile.BLKTYPE),
], ids=lambda m: m.name + m.linkname)  # fmt: skip
def test_links_and_devices_are_refused(archive, member):
    with pytest.raises(IntegrityError, match="plain files only"):
        open_bundle(archive(("good.txt", b"1"), (member, b"")))


def test_a_file_below_a_link_is_never_written(archive, tmp_path):
    (tmp_path / "outside").mkdir()
    path = archive((special("d", tarfile.SYMTYPE, str(tmp_path / "outside")), b""), ("d/evil", b"x"))
    with pytest.raises(IntegrityError):
        open_bundle(path)
    assert not any((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("names", [
    ("a.txt", "A.TXT"), ("dir/a", "DIR/b"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("a", "a"),
    ("a", "a/b"), ("a/b", "a"),
])  # fmt: skip
def test_names_that_collide_on_some_file_system_are_refused(archive, names):
    with pytest.raises(IntegrityError):
        open_bundle(archive(*((name, b"x") for name in names)))


def test_an_archive_that_unpacks_to_too_much_is_refused(archive):
    bomb = archive(("zeros", bytes(50 << 20)))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(IntegrityError, match="unpacks to more than 1048576 bytes"):
        open_bundle(bomb, max_bytes=1 << 20)


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 6 << 30
    path = tmp_path / "x.tar.zst"
    path.write_bytes(zstandard.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(2048)))
    with pytest.raises(IntegrityError, match="claims"):
        open_bundle(path)


def test_sparse_files_are_refused(tmp_path):
    info = tarfile.TarInfo("huge")
    info.size = 0
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "huge",
                        "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0"}  # fmt: skip
    path = tmp_path / "x.tar.zst"
    path.write_bytes(zstandard.compress(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)))
    with pytest.raises(IntegrityError):
        open_bundle(path)


def test_cut_and_foreign_files_are_refused(folder, tmp_path):
    pack(folder, tmp_path / "x.tar.zst")
    whole = (tmp_path / "x.tar.zst").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b"",
                          "no tar": zstandard.compress(b"hello" * 400), "flipped": whole[:40] + b"\xff\xff" + whole[42:]}.items():  # fmt: skip
        path = tmp_path / f"{name}.tar.zst"
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"zstd|tar|missing|sha256|manifest"):
            open_bundle(path).verify()


def test_a_folder_with_a_link_is_refused(folder):
    (folder / "link").symlink_to("/etc/hosts")
    with pytest.raises(IntegrityError, match="a link"):
        open_bundle(folder)


@pytest.mark.parametrize("manifest, message", [
    ("[]", "must map"), ("{", "cannot be read"), ('{"files": {"../x": {"sha256": "", "size": 1}}}', r"`\.\.` part"),
    ('{"files": {"report.json": "abc"}}', "no sha256 and size"), ("[" * 100_000, "cannot be read"),
])  # fmt: skip
def test_a_manifest_is_not_trusted(folder, manifest, message):
    (folder / MANIFEST).write_text(manifest)
    with pytest.raises(IntegrityError, match=message):
        open_bundle(folder).verify()


def test_a_report_without_a_manifest_says_that_its_gates_failed(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(IntegrityError) as caught:
        open_bundle(folder).verify()
    assert "gates did not pass" in caught.value.hint


def test_nothing_there_is_the_callers_mistake(tmp_path):
    with pytest.raises(DataError, match="no such bundle"):
        open_bundle(tmp_path / "none")


def test_extracting_over_existing_files_is_refused(folder, tmp_path):
    pack(folder, tmp_path / "x.tar.zst")
    with pytest.raises(DataError, match="not an empty folder"):
        open_bundle(tmp_path / "x.tar.zst", into=folder)
