"""The calibration cache's text, against its format."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends.tensorrt.cache import check_cache, read_cache, version_number, write_cache
from edgekit.errors import DataError

names = st.from_regex(r"[A-Za-z0-9_./-]{1,40}", fullmatch=True)
scales = st.floats(2.0**-100, 2.0**100, width=32)


def test_the_text_is_header_then_name_and_big_endian_float32():
    text = write_cache({"input": 1 / 127, "a/b.0/Conv_out": 1.0}, "8502")
    assert text == "TRT-8502-EntropyCalibration2\ninput: 3c010204\na/b.0/Conv_out: 3f800000\n"


@given(st.dictionaries(names, scales, max_size=20))
def test_what_is_written_is_read_back_to_the_bit(table):
    version, got = read_cache(write_cache(table, "8502"))
    assert version == "8502" and list(got.items()) == list(table.items())


def test_trtexecs_own_reading_gives_the_same_scale():
    # As its sample does: the hex after the last colon, taken as an integer, seen as a float.
    line = write_cache({"x": 0.037}, "8502").splitlines()[1]
    as_int = int(line[line.rfind(":") + 2 :][:8], 16)
    assert struct.unpack("<f", struct.pack("<i", as_int))[0] == pytest.approx(0.037, rel=1e-7)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "a=b", "ä", "a\nb", "a'b", "$(reboot)"])
def test_names_that_the_format_or_the_shell_would_split_are_refused(name):
    with pytest.raises(DataError, match="cannot be written"):
        write_cache({name: 1.0}, "8502")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-60, 1e60])
def test_scales_that_are_not_positive_float32_are_refused(scale):
    with pytest.raises(DataError, match="not a positive float32"):
        write_cache({"x": scale}, "8502")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", ":1:"),
        ("TRT-8502-MinMaxCalibration\nx: 3c010204\n", ":1:"),
        ("x: 3c010204\n", ":1:"),
        ("TRT-8502-EntropyCalibration2\nx: 3c0102\n", ":2:"),
        ("TRT-8502-EntropyCalibration2\nx: 3c010204\ny 3c010204\n", ":3:"),
        ("TRT-8502-EntropyCalibration2\nx: 3c010204\nx: 3c010204\n", "twice"),
        ("TRT-8502-EntropyCalibration2\nx: 00000000\n", "not a positive number"),
        ("TRT-8502-EntropyCalibration2\nx: 7fc00000\n", "not a positive number"),
        ("TRT-8502-EntropyCalibration2\nx: 3c010204", "cut off|no end"),
    ],
)
def test_a_damaged_cache_is_refused_with_its_line(text, message):
    with pytest.raises(DataError, match=message):
        read_cache(text)


def test_a_cache_of_another_version_or_without_a_tensor_is_refused():
    text = write_cache({"x": 1.0}, "8502")
    check_cache(text, "8502", ["x"])
    with pytest.raises(DataError, match="made for TensorRT 8502"):
        check_cache(text, "8601", ["x"])
    with pytest.raises(DataError, match="no scale for 1 tensors, the first is `y`"):
        check_cache(text, "8502", ["x", "y"])


def test_versions_become_the_number_that_tensorrt_prints():
    assert version_number("8.5.2") == "8502" and version_number("8.6.1.6") == "8601"
