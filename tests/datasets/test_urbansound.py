"""Noise from UrbanSound8K: which sounds a split hears, and how loud they are."""

from __future__ import annotations

import re
import wave

import numpy as np
import pytest

from edgekit.datasets import urbansound
from edgekit.datasets.urbansound import NoiseSpec, fit, open_noise
from edgekit.errors import DataError

HEADER = "slice_file_name,fsID,start,end,salience,fold,classID,class"


def write_wav(path, samples, rate_hz=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate_hz)
        w.writeframes(np.asarray(samples, "<i2").tobytes())


def make(root, levels=None, rows=None):
    """Two sounds a fold, 0.25 s of noise each."""
    (root / "metadata").mkdir(parents=True)
    lines = [HEADER]
    for fold in range(1, 11):
        for i in range(2):
            name = f"{fold}00{i}-3-0-{i}.wav"
            rng = np.random.default_rng(fold * 10 + i)
            write_wav(root / "audio" / f"fold{fold}" / name, rng.integers(-3000, 3000, 4000) * (levels or {}).get(fold, 1))
            lines.append(f"{name},{fold}00{i},0,0.25,1,{fold},3,{'dog_bark' if i else 'siren'}")
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows or lines) + "\n")


def error(keys, message, hint=None):
    return DataError(f"noise.yaml:{'.'.join(keys)}: {message}", hint)


def opened(tmp_path, split="test", **changes):
    return open_noise(NoiseSpec(root="us8k", **changes), tmp_path, split, error)


@pytest.fixture
def speech():
    return (8000 * np.sin(np.arange(16000) / 20)).astype(np.int16)


def test_splits_hear_other_folds(tmp_path):
    make(tmp_path / "us8k")
    folds = {split: {int(s.path.parent.name[4:]) for s in opened(tmp_path, split).sounds} for split in ("train", "calibration", "test")}
    assert folds == {"train": set(range(1, 9)), "calibration": {9}, "test": {10}}


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_the_mixture_has_the_ratio_that_it_says(tmp_path, speech, snr_db):
    make(tmp_path / "us8k")
    mixed, tags = opened(tmp_path, snr_db=(snr_db,)).mix("a/0001", speech // 8, 16000)
    noise = mixed.astype(float) - speech // 8
    ratio = 10 * np.log10(np.mean((speech // 8).astype(float) ** 2) / np.mean(noise**2))
    assert tags["snr_db"] == snr_db and tags["noise"] in ("siren", "dog_bark")
    assert abs(ratio - snr_db) < 0.01  # 16 bits of speech at 1000


def test_a_loud_mixture_is_made_softer_as_a_whole(tmp_path):
    make(tmp_path / "us8k")
    speech = (32767 * np.sign(np.sin(np.arange(16000) / 20))).astype(np.int16)
    noise = opened(tmp_path, snr_db=(-5.0,))
    mixed, _ = noise.mix("a/0001", speech, 16000)
    assert abs(int(np.abs(mixed.astype(int)).max()) - 32767) <= 1
    # The same mixture, an eighth as loud, differs by one factor only.
    soft, _ = noise.mix("a/0001", speech // 8, 16000)
    factor = np.dot(mixed.astype(float), soft.astype(float)) / np.dot(soft.astype(float), soft.astype(float))
    assert np.abs(mixed - factor * soft).max() < 8


def test_a_clip_is_always_mixed_alike_and_others_otherwise(tmp_path, speech):
    make(tmp_path / "us8k")
    noise = opened(tmp_path)
    one, tags = noise.mix("a/0001", speech, 16000)
    again, same = opened(tmp_path).mix("a/0001", speech, 16000)
    np.testing.assert_array_equal(one, again)
    assert tags == same and noise.digest("a/0001") == opened(tmp_path).digest("a/0001")
    assert noise.digest("a/0001") != noise.digest("a/0002") != opened(tmp_path, seed=1).digest("a/0002")
    drawn = [noise.draw(f"c{i}").snr_db for i in range(400)]
    assert all(70 <= drawn.count(snr) <= 130 for snr in (-5, 5, 10, 20))  # 100 each, 3.5 standard deviations


def test_noise_is_cut_or_repeated_to_the_length_of_the_speech():
    noise = np.arange(1, 6)
    assert fit(noise, 12, 0.7).tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
    assert fit(noise, 5, 0.7).tolist() == [1, 2, 3, 4, 5]
    assert fit(noise, 3, 0.5).tolist() == [2, 3, 4] and fit(noise, 3, 0.999).tolist() == [2, 3, 4] and fit(noise, 1, 0.999).tolist() == [4]


def test_silent_speech_stays_silent(tmp_path):
    make(tmp_path / "us8k")
    mixed, tags = opened(tmp_path).mix("a", np.zeros(100, np.int16), 16000)
    assert not mixed.any() and tags == {"noise": "none"}


def test_a_silent_sound_gives_way_to_the_next_and_only_silence_is_refused(tmp_path, speech):
    make(tmp_path / "us8k", levels={10: 0})
    with pytest.raises(DataError, match=r"silent, as are the other sounds drawn for clip a/1"):
        opened(tmp_path).mix("a/1", speech, 16000)
    noise = opened(tmp_path)
    id = next(f"c{i}" for i in range(99) if len({s.path for s in noise.draw(f"c{i}").sounds[:2]}) == 2)
    second = noise.draw(id).sounds[1]
    write_wav(second.path, np.arange(4000) % 100)
    assert noise.mix(id, speech, 16000)[1]["noise"] == second.kind


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("../../x.wav,1,0,1,1,10,3,siren", "csv:2: sound `../../x.wav` is not the name of a file"),
        ("a.wav,1,0,1,1,11,3,siren", "csv:2: fold `11`, expected 1 to 10"),
        ("a.wav,1,0,1,1,ten,3,siren", "csv:2: fold `ten`"),
        ("a.wav,1,0,1,1,10,3,siren", "csv:2: sound `audio/fold10/a.wav`: the data do not exist"),
        ("a.wav,1,0,1,1,1,3,siren\na.wav,1,0,1,1,2,3,siren", "csv:3: sound `a.wav` already stands in line 2"),
        ("a.wav,1,0,1,1,1,3,siren", "csv:1: no sound of fold 10, which split `test` hears"),
        ("a.wav,1,0", "csv:2: 3 cells"),
    ],
)
def test_a_wrong_table_is_refused_by_line(tmp_path, row, says):
    make(tmp_path / "us8k", rows=[HEADER, *row.split("\n")])
    with pytest.raises(DataError) as e:
        opened(tmp_path)
    assert re.search(says, str(e.value)), str(e.value)


def test_a_wrong_description_is_refused(tmp_path):
    with pytest.raises(DataError, match="noise.yaml:root: `noise.root` is not a folder"):
        opened(tmp_path)
    make(tmp_path / "us8k")
    with pytest.raises(DataError, match="noise.yaml:snr_db: `noise.snr_db` of 99"):
        opened(tmp_path, snr_db=(99.0,))


def test_digest_follows_the_sounds_that_are_drawn(tmp_path):
    make(tmp_path / "us8k")
    noise = opened(tmp_path)
    before = noise.digest("a")
    write_wav(noise.draw("a").sounds[0].path, np.arange(9))
    assert noise.digest("a") != before
    assert before[0] == urbansound.SEMANTICS
