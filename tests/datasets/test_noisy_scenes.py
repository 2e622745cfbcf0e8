"""`synthetic_av_noisy`: the clips of `synthetic_av`, each at four SNRs in the test, in noise that no other mixture has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.datasets import noisy_scenes, open_dataset, read_description
from edgekit.errors import DataError

SHIPPED = read_description(Path(__file__).parents[2] / "calibration/synthetic_av_noisy.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("noisy")
    (folder / "calibration").mkdir()
    text = "clips: {train: 2, calibration: 1, test: 2}\nsplits: {train: 5, calibration: 1, test: 8}\nseed: 3\n"
    (folder / "calibration/noisy.yaml").write_text(f"dataset: synthetic_av_noisy\n{text}")
    (folder / "calibration/plain.yaml").write_text("dataset: synthetic_av\nsplits: {train: 2, calibration: 1, test: 2}\nseed: 3\n")
    return folder


def opened(folder: Path, split: str, name: str = "noisy", limit: int | None = None):
    return open_dataset(name, split, limit, folder, folder / ".edgekit")


def test_the_test_has_every_clip_at_four_snrs(folder):
    data = opened(folder, "test")
    assert data.ids == [f"test-0000{clip}{snr}dB" for clip in (0, 1) for snr in ("-5", "+0", "+5", "+20")]
    clips = [data.clip(id) for id in data.ids]
    assert [clip.tags["snr_db"] for clip in clips] == [-5, 0, 5, 20] * 2
    plain = opened(folder, "test", "plain")
    for k, clip in enumerate(clips):
        seen = plain.clip(plain.ids[k // 4])
        assert np.array_equal(clip.frames, seen.frames) and clip.labels == seen.labels
        assert clip.tags["identity"] == seen.tags["identity"] and clip.tags["noise"] in noisy_scenes.NOISES


@pytest.mark.parametrize("k, db", [(0, -5.0), (1, 0.0), (2, 5.0), (3, 20.0)])
def test_the_ratio_of_powers_is_the_snr(k, db):
    audio, snr_db, _ = noisy_scenes.mix(3, "test", 0, k)
    speech = noisy_scenes.speech_of(3, "test", 0)
    heard = audio / 32768.0
    gain = (heard @ speech) / (speech @ speech)  # noise and speech are uncorrelated up to some tenths of a dB
    rest = heard - gain * speech
    assert snr_db == db and abs(10 * np.log10(gain**2 * (speech @ speech) / (rest @ rest)) - db) < 1.0


def test_the_speech_is_the_one_that_the_plain_set_has(folder):
    plain = opened(folder, "test", "plain")
    clip = plain.clip(plain.ids[1])
    heard, said = clip.audio / 32768.0, noisy_scenes.speech_of(3, "test", 1)
    likeness = (heard @ said) / np.sqrt((heard @ heard) * (said @ said))
    share = 10 ** (clip.tags["snr_db"] / 10)
    assert likeness == pytest.approx(np.sqrt(share / (1 + share)), abs=0.1)


def test_no_noise_is_met_twice(folder):
    mixtures = [noisy_scenes.mix(3, split, 0, k) for split in ("train", "calibration", "test") for k in range(2)]
    rests = []
    for split, audio in zip(("train", "train", "calibration", "calibration", "test", "test"), (m[0] for m in mixtures), strict=True):
        said = noisy_scenes.speech_of(3, split, 0)
        rest = audio - said * (audio @ said) / (said @ said)
        rests.append(rest / np.linalg.norm(rest))
    likeness = np.abs(np.stack(rests) @ np.stack(rests).T)
    assert likeness[~np.eye(6, dtype=bool)].max() < 0.3


def test_training_goes_round_its_clips_with_new_noise(folder):
    data = opened(folder, "train")
    assert data.ids == [f"train-{k:05d}" for k in range(5)]
    first, again = data.clip(data.ids[0]), data.clip(data.ids[2])
    assert np.array_equal(first.frames, again.frames) and not np.array_equal(first.audio, again.audio)


def test_only_clips_whose_face_and_voice_agree_are_mixed_where_that_is_asked(tmp_path):
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/same.yaml").write_text("dataset: synthetic_av_noisy\nseed: 3\nagree: 0.25\nclips: {test: 9}\nsplits: {test: 8}\n")
    data = open_dataset("same", "test", None, tmp_path, tmp_path / ".edgekit")
    labels = [noisy_scenes.labels_of(3, "test", clip) for clip in range(9)]
    close = [label for label in labels if abs(label["v"] - label["a"]) <= 0.25]
    assert 2 <= len(close) < 9
    assert [data.clip(id).labels for id in data.ids[::4]] == close[:2]
    (tmp_path / "calibration/same.yaml").write_text("dataset: synthetic_av_noisy\nseed: 3\nagree: 0.25\nclips: {test: 9}\nsplits: {test: 36}\n")
    with pytest.raises(DataError, match=f"in {len(close)} of 9 clips face and voice are within 0.25, split `test` needs 9"):
        open_dataset("same", "test", None, tmp_path, tmp_path / ".edgekit").clip("test-00000-5dB")


def test_a_mixture_is_the_same_however_many_there_are(folder):
    few, all_ = opened(folder, "test", limit=2), opened(folder, "test")
    assert few.ids == all_.ids[:2] and few.digest() != all_.digest()
    assert np.array_equal(few.clip(few.ids[1]).audio, all_.clip(all_.ids[1]).audio)
    with pytest.raises(DataError, match="no mixture `test-00001"):
        few.clip(all_.ids[5])


def test_more_mixtures_than_clips_have_snrs_are_refused(folder, tmp_path):
    (tmp_path / "calibration").mkdir()
    for line, message in (("clips: {test: 2}\nsplits: {test: 9}", "9 mixtures of 2 clips at 4 SNRs"), ("clips: {train: 2}\nsplits: {test: 4}", "`clips.test` must be a number of clips")):
        (tmp_path / "calibration/noisy.yaml").write_text(f"dataset: synthetic_av_noisy\n{line}\n")
        with pytest.raises(DataError, match=message):
            opened(tmp_path, "test")


def test_the_shipped_set_is_that_of_synthetic_av():
    plain = read_description(SHIPPED.path.with_name("synthetic_av.yaml"))
    assert SHIPPED["seed"] == plain["seed"] and SHIPPED["clips"] == plain["splits"]
    assert SHIPPED["splits"]["test"] == 4 * plain["splits"]["test"]
    agreeing = read_description(SHIPPED.path.with_name("synthetic_av_noisy_agree.yaml"))
    assert agreeing["seed"] == SHIPPED["seed"] and {**agreeing["clips"], "test": 320} == SHIPPED["clips"]
    close = sum(abs(label["v"] - label["a"]) <= agreeing["agree"] for label in (noisy_scenes.labels_of(plain["seed"], "test", k) for k in range(agreeing["clips"]["test"])))
    assert agreeing["splits"]["test"] == 4 * close
    assert noisy_scenes.VERSION == 1
