"""Clean speech mixed with UrbanSound8K: which noise, how loud, always the same, and what of the mixture is speech."""

from __future__ import annotations

import re
import wave

import numpy as np
import pytest

from edgekit.datasets import Dataset, open_dataset
from edgekit.errors import DataError

YAML = """dataset: noisy_speech
root: ../libri
splits: {train: train-clean-100, calibration: dev-clean, test: test-clean}
noise: {root: ../us8k}
"""


def write_wav(path, samples, rate_hz=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate_hz)
        w.writeframes(np.asarray(samples, "<i2").tobytes())


class Place:
    def __init__(self, path):
        self.path, self.root = path, path / "libri"
        for name in ("calibration", "recipes"):
            (path / name).mkdir()
        self.yaml()
        for name in ("train-clean-100/19/198/19-198-0000", "train-clean-100/19/198/19-198-0001", "dev-clean/84/1/84-1-0000", "test-clean/61/7/61-7-0000", "test-clean/61/7/61-7-0001"):
            write_wav(self.root / f"{name}.wav", 4000 * np.sin(np.arange(6000) / 20 + len(name)))
        lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
        for fold in range(1, 11):
            for i in range(2):
                name = f"{fold}00{i}-3-0-{i}.wav"
                write_wav(path / f"us8k/audio/fold{fold}/{name}", np.random.default_rng(2 * fold + i).integers(-3000, 3000, 5000))
                lines.append(f"{name},{fold}00{i},0,0.3,1,{fold},3,{'siren' if fold == 10 else 'drilling' if fold == 9 else 'dog_bark'}")
        (path / "us8k/metadata").mkdir()
        (path / "us8k/metadata/UrbanSound8K.csv").write_text("\n".join(lines) + "\n")

    def yaml(self, text=YAML):
        (self.path / "calibration/mine.yaml").write_text(text)

    def open(self, split="test", limit=None):
        return open_dataset("mine", split, limit, self.path / "recipes", self.path / ".edgekit")

    def refused(self, says, split="test"):
        with pytest.raises(DataError) as e:
            dataset = self.open(split)
            for id in dataset.ids:
                dataset.clip(id)
        assert re.search(says, str(e.value)), str(e.value)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_librispeech_is_found_below_its_speakers_and_chapters(place):
    dataset = place.open("train")
    assert isinstance(dataset, Dataset) and dataset.ids == ["19/198/19-198-0000", "19/198/19-198-0001"] and dataset.metrics == ("si_sdr", "stoi")
    assert place.open("calibration").ids == ["84/1/84-1-0000"] and len(place.open("test", 1).ids) == 1


@pytest.mark.parametrize(("split", "noise"), [("train", "dog_bark"), ("calibration", "drilling"), ("test", "siren")])
def test_a_clip_is_its_speech_and_a_noise_of_its_splits_folds_at_the_snr_it_says(place, split, noise):
    for id in place.open(split).ids:
        clip = place.open(split).clip(id)
        assert clip.tags["noise"] == noise and clip.frames.shape == (0, 0, 0, 3) and clip.audio.dtype == np.int16
        assert clip.labels["speech"].shape == clip.audio.shape == (6000,) and clip.labels["speech"].dtype == np.float32
        said = clip.labels["speech"].astype(float) * 32768
        assert np.array_equal(said, np.rint(said))
        rest = clip.audio - said
        assert 10 * np.log10(np.mean(said**2) / np.mean(rest**2)) == pytest.approx(clip.tags["snr_db"], abs=0.02)


def test_a_mixture_that_would_clip_takes_its_speech_down_with_it(place):
    loud = 32000 * np.sign(np.sin(np.arange(6000) / 20))
    write_wav(place.root / "test-clean/61/7/61-7-0000.wav", loud)
    place.yaml(YAML.replace("us8k}", "us8k, snr_db: [0]}"))
    clip = place.open().clip("61/7/61-7-0000")
    said = clip.labels["speech"].astype(float) * 32768
    assert np.abs(clip.audio.astype(int)).max() >= 32766 and said.max() < 25000
    assert np.corrcoef(said, loud)[0, 1] > 0.999999
    assert 10 * np.log10(np.mean(said**2) / np.mean((clip.audio - said) ** 2)) == pytest.approx(0, abs=0.02)


def test_a_clip_is_always_mixed_alike_whatever_others_there_are_and_another_seed_mixes_anew(place):
    one = place.open().clip("61/7/61-7-0001")
    (place.root / "test-clean/61/7/61-7-0000.wav").unlink()
    again = place.open().clip("61/7/61-7-0001")
    assert np.array_equal(one.audio, again.audio) and np.array_equal(one.labels["speech"], again.labels["speech"]) and one.tags == again.tags
    place.yaml(YAML.replace("us8k}", "us8k, seed: 1}"))
    assert not np.array_equal(place.open().clip("61/7/61-7-0001").audio, one.audio)


def test_the_test_has_fixed_snrs_and_the_others_fill_their_range(place):
    for i in range(60):
        for split in ("train-clean-100", "test-clean"):
            write_wav(place.root / split / f"x/{i}.wav", 1000 * np.sin(np.arange(400) / 9))
    test, train = place.open("test"), place.open("train")
    assert {test.clip(id).tags["snr_db"] for id in test.ids} == {-5, 5, 10, 20}
    drawn = [train.clip(id).tags["snr_db"] for id in train.ids]
    assert len(set(drawn)) == len(drawn) and -5 <= min(drawn) < 0 and 15 < max(drawn) <= 20
    place.yaml(YAML + "snr_range_db: [3, 4]\n")
    assert all(3 <= place.open("train").clip(id).tags["snr_db"] <= 4 for id in train.ids[:9])
    assert place.open("test").digest() == test.digest() and place.open("train").digest() != train.digest()


def test_speakers_of_one_folder_are_divided_by_patterns(place):
    place.yaml(YAML.replace("calibration: dev-clean", "calibration: {folder: train-clean-100, names: ['19/198/*0001']}"))
    assert place.open("calibration").ids == ["19/198/19-198-0001"] and place.open("train").ids == ["19/198/19-198-0000"]


def test_speech_at_another_rate_and_in_a_video_is_read(place, write_container):
    write_wav(place.root / "test-clean/61/7/61-7-0000.wav", 3000 * np.sin(np.arange(24000) / 40), rate_hz=48_000)
    write_container(place.root / "test-clean/film.mp4")
    dataset = place.open()
    assert len(dataset.clip("61/7/61-7-0000").audio) == 8000
    film = dataset.clip("film")
    assert abs(len(film.audio) - 8000) < 800 and film.labels["speech"].shape == film.audio.shape


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (YAML.replace("test-clean", "tset"), "yaml:3: not a folder: .*libri/tset"),
        (YAML.replace("dev-clean", "test-clean/61"), "yaml:3: `test-clean/61/7/61-7-0000` is in split `calibration` and in `test`"),
        (YAML.replace("noise: {root: ../us8k}\n", ""), "`noise` is missing"),
        (YAML.replace("us8k}", "no}"), "yaml:4: `noise.root` is not a folder"),
        (YAML.replace("../libri", "../no"), "yaml:2: `root` is not a folder"),
        (YAML + "snr_range_db: [20, -5]\n", r"yaml:5: `snr_range_db` is \[20, -5\]"),
        (YAML + "snr_range_db: [0]\n", "yaml:5: `snr_range_db"),
    ],
)
def test_a_wrong_description_is_refused_by_line(place, text, says):
    place.yaml(text)
    place.refused(says)


def test_silence_is_no_speech(place):
    write_wav(place.root / "test-clean/61/7/61-7-0001.wav", np.zeros(500))
    place.refused("61-7-0001.wav: silent, so there is no speech to free from noise")


def test_the_digest_follows_speech_and_noise_and_a_change_in_between_is_refused(place):
    dataset = place.open()
    first = dataset.digest()
    assert first == place.open().digest()
    write_wav(place.root / "test-clean/61/7/61-7-0001.wav", np.arange(500))
    with pytest.raises(DataError, match="61-7-0001.wav: changed since this command began"):
        dataset.clip("61/7/61-7-0001")
    second = place.open().digest()
    for path in (place.path / "us8k/audio/fold10").iterdir():
        write_wav(path, np.arange(700) % 90)
    assert len({first, second, place.open().digest()}) == 3
