"""Decoding: what comes out of each container, and what is refused."""

from __future__ import annotations

import io
import wave
import zipfile

import numpy as np
import pytest

from edgekit.datasets import media
from edgekit.errors import DataError


def tone(seconds=0.5, rate_hz=16000, hz=440.0, level=0.4):
    return level * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)


def write_wav(path, samples, rate_hz=16000):
    samples = np.atleast_2d(samples)
    with wave.open(str(path), "wb") as w:
        w.setnchannels(len(samples))
        w.setsampwidth(2)
        w.setframerate(rate_hz)
        w.writeframes(samples.T.astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    ("name", "video", "audio", "rate_hz"),
    [
        ("a.mp4", "mpeg4", "aac", 44100),
        ("a.mp4", "libx264", "aac", 48000),
        ("a.MKV", "mpeg4", "libopus", 48000),
        ("a.webm", "libvpx-vp9", "libopus", 48000),
        ("a.flv", "flv", "libmp3lame", 44100),
        ("a.avi", "mpeg4", "libmp3lame", 48000),
    ],
)
def test_a_container_gives_rgb_frames_and_resampled_mono(tmp_path, write_container, name, video, audio, rate_hz):
    path = write_container(tmp_path / name, video=video, audio=audio, rate_hz=rate_hz)
    frames, fps = media.read_video(path)
    assert frames.shape == (12, 48, 64, 3) and frames.dtype == np.uint8 and fps == 25
    # 25: lossy codecs and 4:2:0 chroma; red over blue, so the channel order is told apart
    np.testing.assert_allclose(frames[0, 5, 5], [220, 30, 30], atol=25)
    np.testing.assert_allclose(frames[-1, -5, 5], [0, 0, 176], atol=25)

    samples = media.read_audio(path, 16000)
    assert samples.dtype == np.int16 and abs(len(samples) - 8000) < 800  # codecs pad to their frame
    middle = samples[2000:6000].astype(float) / 32768
    # 0.2: the mean of a tone of 0.4 and a silent channel; 0.03: lossy codecs
    assert abs(np.sqrt(2 * np.mean(middle**2)) - 0.2) < 0.03
    spectrum = abs(np.fft.rfft(middle))
    assert spectrum.argmax() * 16000 / len(middle) == 440


def test_a_turned_phone_video_comes_out_upright(tmp_path, write_container):
    path = write_container(tmp_path / "a.mp4", audio=None)
    lying, _ = media.read_video(path)
    # The display matrix in the track header: identity -> a quarter turn (ISO 14496-12, 8.3.2).
    one, perspective = (0x10000).to_bytes(4, "big"), (0x40000000).to_bytes(4, "big")
    identity = one + bytes(12) + one + bytes(12) + perspective
    quarter = bytes(4) + one + bytes(4) + (-0x10000).to_bytes(4, "big", signed=True) + bytes(16) + perspective
    data = path.read_bytes()
    at = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:at] + quarter + data[at + 36 :])
    upright, _ = media.read_video(path)
    # This matrix says "turn by 90 degrees clockwise to show": the upper half becomes the right half.
    np.testing.assert_array_equal(upright, np.rot90(lying, k=-1, axes=(1, 2)))
    assert upright[0, 5, -5, 0] > 150 and upright[0, 5, 5, 0] < 80


def test_16_bit_mono_at_the_right_rate_is_unchanged(tmp_path, write_npz):
    samples = np.arange(-32768, 32768, dtype=np.int16)
    np.testing.assert_array_equal(media.read_audio(write_wav(tmp_path / "a.wav", samples), 16000), samples)
    np.testing.assert_array_equal(media.read_audio(write_npz(tmp_path / "a.npz", audio=samples), 16000), samples)


def test_flac_and_wav_of_the_same_sound_are_equal(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    samples = np.rint(np.stack([tone(), tone(hz=100)], axis=1) * 32768).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    got = media.read_audio(tmp_path / "a.flac", 16000)
    np.testing.assert_array_equal(got, media.read_audio(tmp_path / "a.wav", 16000))
    np.testing.assert_allclose(got, samples.mean(axis=1), atol=0.5)  # a half is rounded


def test_the_mean_of_the_channels_is_rounded_half_to_even(tmp_path):
    path = write_wav(tmp_path / "a.wav", [[0, 1, 2, 3, -1, 32767], [1, 2, 3, 4, 0, 32767]])
    assert media.read_audio(path, 16000).tolist() == [0, 2, 2, 4, 0, 32767]


@pytest.mark.parametrize("rate_hz", [8000, 44100, 48000])
def test_resampling_keeps_a_tone_and_its_length(tmp_path, rate_hz):
    path = write_wav(tmp_path / "a.wav", np.rint(tone(rate_hz=rate_hz) * 32768), rate_hz)
    got = media.read_audio(path, 16000)
    assert len(got) == 8000
    # 1 %: ripple of the default Kaiser filter; the ends ring
    np.testing.assert_allclose(got[500:-500] / 32768, tone()[500:-500], atol=0.004)


def test_float_audio_saturates_like_a_player_and_other_units_are_refused(tmp_path, write_npz):
    loud = write_npz(tmp_path / "loud.npz", audio=np.array([1.5, -1.5, 0.25], np.float32))
    assert media.read_audio(loud, 16000).tolist() == [32767, -32768, 8192]
    with pytest.raises(DataError, match="wrong.npz: float audio reaches 1200, expected -1 to 1"):
        media.read_audio(write_npz(tmp_path / "wrong.npz", audio=np.array([1200.0])), 16000)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": None}, "no video"),
        ({"frames": np.zeros((2, 3, 4), np.uint8)}, r"`frames` is uint8 \[2, 3, 4\]"),
        ({"frames": np.zeros((2, 3, 4, 3), np.float32)}, "`frames` is float32"),
        ({"frames": np.zeros((0, 3, 4, 3), np.uint8)}, "video of zero length"),
        ({"frames": np.array([object()])}, "Python objects"),
        ({"fps": None}, "`fps` must be one number, it is missing"),
        ({"fps": np.nan}, "`fps` must be a positive number, it is nan"),
        ({"fps": np.array([1.0, 2.0])}, "`fps` must be one number"),
    ],
)
def test_an_npz_with_wrong_frames_is_refused(tmp_path, write_npz, changes, says):
    with pytest.raises(DataError, match=f"a.npz: .*{says}"):
        media.read_video(write_npz(tmp_path / "a.npz", **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"audio": None}, "no audio"),
        ({"audio": np.zeros(0, np.int16)}, "audio of zero length"),
        ({"audio": np.array([0.1, np.nan])}, "NaN"),
        ({"audio": np.array([0.1, np.inf], np.float32)}, "NaN or infinity"),
        ({"audio": np.zeros((2, 9), np.int16)}, r"`audio` is int16 \[2, 9\]"),
        ({"audio": np.zeros(9, np.int32)}, "`audio` is int32"),
        ({"sample_rate_hz": 0}, "positive"),
        ({"sample_rate_hz": 16000.5}, "whole number"),
        ({"sample_rate_hz": 7}, "sample rate of 7 Hz"),
    ],
)
def test_an_npz_with_wrong_audio_is_refused(tmp_path, write_npz, changes, says):
    with pytest.raises(DataError, match=f"a.npz: .*{says}"):
        media.read_audio(write_npz(tmp_path / "a.npz", **changes), 16000)


def test_an_npz_whose_header_asks_for_gigabytes_takes_no_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 999, 999, 3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("frames.npy", header.getvalue())
    with pytest.raises(DataError, match="at most 1024 MiB are read"):
        media.read_video(tmp_path / "a.npz")


def test_an_npz_whose_array_is_shorter_than_its_header_says_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2, 4, 4, 3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("frames.npy", header.getvalue() + bytes(7))
    with pytest.raises(DataError, match="7 bytes, its header says 96"):
        media.read_video(tmp_path / "a.npz")


def test_a_damaged_npz_is_refused(tmp_path, write_npz):
    data = write_npz(tmp_path / "good.npz").read_bytes()
    middle = len(data) // 2
    for broken in (b"", b"hello", data[:middle], data[:300] + bytes(8) + data[308:], bytes(50) + data[50:]):
        (tmp_path / "a.npz").write_bytes(broken)
        with pytest.raises(DataError, match="a.npz: "):
            media.read_video(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_damaged_container_is_refused(tmp_path, write_container, name):
    video, audio = ("libvpx-vp9", "libopus") if name == "a.webm" else ("mpeg4", "aac")
    rate_hz = 48000 if audio == "libopus" else 44100
    data = write_container(tmp_path / f"good{name}", video=video, audio=audio, rate_hz=rate_hz).read_bytes()
    for broken in (b"", b"hello" * 99, data[: len(data) // 2]):
        (tmp_path / name).write_bytes(broken)
        for read in (media.read_video, lambda path: media.read_audio(path, 16000)):
            with pytest.raises(DataError, match=name):
                read(tmp_path / name)


def test_a_container_without_picture_or_sound_is_refused(tmp_path, write_container):
    silent = write_container(tmp_path / "silent.mp4", audio=None)
    with pytest.raises(DataError, match="silent.mp4: no audio stream"):
        media.read_audio(silent, 16000)
    blind = write_container(tmp_path / "blind.mp4", video=None)
    with pytest.raises(DataError, match="blind.mp4: no video stream"):
        media.read_video(blind)


def test_a_playlist_that_calls_itself_mp4_opens_nothing(tmp_path, write_container):
    write_container(tmp_path / "secret.ts.mp4")
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXTINF:1,\nsecret.ts.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(DataError, match=r"a\.mp4"):
        media.read_video(tmp_path / "a.mp4")


def test_a_wav_that_is_cut_off_empty_or_not_sound_is_refused(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.rint(tone() * 32768))
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(DataError, match=f"{len(data) - 1000} bytes, its header says {len(data)}"):
        media.read_audio(path, 16000)
    for broken in (b"", b"hello" * 99, data[:20]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="a.wav: "):
            media.read_audio(path, 16000)
    with pytest.raises(DataError, match="zero length"):
        media.read_audio(write_wav(tmp_path / "b.wav", np.zeros(0)), 16000)


def test_a_float_wav_with_nan_is_refused(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    with pytest.raises(DataError, match="a.wav: audio holds NaN"):
        media.read_audio(tmp_path / "a.wav", 16000)


def test_a_cut_off_flac_is_refused(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(size=16000) * 0.1, 16000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="a.flac"):
        media.read_audio(tmp_path / "a.flac", 16000)


def test_other_suffixes_and_missing_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"video cannot be read from `\.wav`"):
        media.read_video(tmp_path / "a.wav")
    with pytest.raises(DataError, match=r"audio cannot be read from `\.mp3`"):
        media.read_audio(tmp_path / "a.mp3", 16000)
    for name in ("a.npz", "a.mp4", "a.wav"):
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            media.read_audio(tmp_path / name, 16000)


def test_a_clip_larger_than_allowed_is_refused_while_decoding(tmp_path, write_container, monkeypatch):
    monkeypatch.setattr(media, "MAX_FRAME_BYTES", 48 * 64 * 3 * 5)
    monkeypatch.setattr(media, "MAX_SAMPLES", 5000)
    path = write_container(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="cut the clip"):
        media.read_video(path)
    with pytest.raises(DataError, match="cut the clip"):
        media.read_audio(path, 16000)


# -- a part of a file, and arrays ------------------------------------------------------------------


@pytest.mark.parametrize(("name", "video"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.flv", "flv"), ("a.mkv", "mpeg4")])
def test_a_span_of_a_video_is_the_same_frames_as_of_the_whole(tmp_path, write_container, name, video):
    path = write_container(tmp_path / name, frames=60, video=video, audio=None)
    whole, fps = media.read_video(path)
    part, same_fps = media.read_video(path, (1.2, 2.0))  # behind the second key frame of codecs that write one every 12
    assert same_fps == fps == 25 and len(part) == 20
    np.testing.assert_array_equal(part, whole[30:50])
    assert len(media.read_video(path, (0.0, 0.5))[0]) in (12, 13)  # 12.5 frames


@pytest.mark.parametrize(("name", "audio"), [("a.mp4", "aac"), ("a.avi", "libmp3lame"), ("a.mkv", "libopus")])
def test_a_span_of_sound_is_the_same_samples_as_of_the_whole(tmp_path, write_container, name, audio):
    path = write_container(tmp_path / name, audio=audio, rate_hz=48000, seconds=4.0, frames=100)
    whole, part = media.read_audio(path, 48000), media.read_audio(path, 48000, (2.0, 3.0))
    assert len(part) == 48000
    # An MP3's or AAC's start may be counted with or without the encoder's delay, so find it: at most 60 ms.
    delay = min(range(-2900, 2900), key=lambda k: abs(whole[96000 + k : 96000 + k + 4800].astype(int) - part[:4800]).sum())
    np.testing.assert_allclose(part, whole[96000 + delay :][:48000], atol=40)  # 40 of 32768: decoders start cold


@pytest.mark.parametrize("read", [media.read_video, lambda path, span: media.read_audio(path, 16000, span)])
def test_a_span_behind_the_end_is_refused(tmp_path, write_container, read):
    path = write_container(tmp_path / "a.mp4", frames=25, seconds=1.0)
    assert len(read(path, (0.5, 1.05))) > 0  # times are rounded by those who write them
    for span in ((0.5, 2.0), (3.0, 4.0)):
        with pytest.raises(DataError, match=r"nothing from [\d.]+ s on, .* is asked for"):
            read(path, span)


def test_no_span_is_taken_of_what_has_no_times(tmp_path, write_npz):
    with pytest.raises(DataError, match="cannot be read from `.npz`"):
        media.read_video(write_npz(tmp_path / "a.npz"), (0.0, 1.0))


def test_an_array_is_read_without_pickles_and_only_if_whole(tmp_path):
    path = tmp_path / "a.npy"
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(path, values)
    np.testing.assert_array_equal(media.read_npy(path), values)
    with pytest.raises(DataError, match="MiB decoded"):
        media.read_npy(path, max_bytes=47)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="has 47 bytes, its header says 48"):
        media.read_npy(path)
    path.write_bytes(b"no array")
    with pytest.raises(DataError, match="not a .npy"):
        media.read_npy(path)
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="pickles are never loaded"):
        media.read_npy(path)
    with pytest.raises(DataError, match="cannot be read"):
        media.read_npy(tmp_path / "absent.npy")
