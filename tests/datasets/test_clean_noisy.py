"""Pairs of noisy and clean files as VoiceBank-DEMAND, DNS and one's own folders hold them, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from edgekit import document
from edgekit.datasets import Dataset, clean_noisy, noisy_speech, open_dataset
from edgekit.errors import DataError
from edgekit.metrics import METRICS

PLAIN = "dataset: clean_noisy\nroot: ../data\nsplits: {train: train, test: test}\n"
VOICEBANK = """dataset: clean_noisy
root: ../data
noisy: noisy_{folder}_wav
clean: clean_{folder}_wav
mixtures: log_{folder}.txt
splits: {train: trainset_28spk, calibration: {folder: trainset_28spk, names: [p286_*]}, test: testset}
"""
DNS = r"""dataset: clean_noisy
root: ../data
match: fileid_(\d+)$
splits: {test: .}
"""


class Place:
    def __init__(self, path):
        self.path, self.root = path, path / "data"
        for name in ("calibration", "recipes", "data"):
            (path / name).mkdir()

    def yaml(self, text):
        (self.path / "calibration" / "mine.yaml").write_text(text)

    def pair(self, noisy, clean, seed=0, rate_hz=16_000, samples=8000, clean_rate_hz=None, clean_samples=None):
        """A tone, and the same tone in noise."""
        rng = np.random.default_rng(seed)
        speech = (6000 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate_hz)).astype(np.int16)
        noise = rng.integers(-1000, 1000, samples).astype(np.int16)
        for name, wave, rate in ((noisy, speech + noise, rate_hz), (clean, speech[:clean_samples], clean_rate_hz or rate_hz)):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(self.root / name, wave, rate, subtype="PCM_16")
        return speech, noise

    def plain(self, *names):
        self.yaml(PLAIN)
        for name in names or ("train/a", "train/b", "test/c"):
            folder, _, stem = name.rpartition("/")
            self.pair(f"{folder}/noisy/{stem}.wav", f"{folder}/clean/{stem}.wav")

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


def test_a_clip_is_the_noisy_file_and_its_label_the_clean_one(place):
    place.plain()
    speech, noise = place.pair("test/noisy/c.wav", "test/clean/c.wav", seed=5)
    dataset = place.open()
    assert isinstance(dataset, Dataset) and dataset.ids == ["c"] and dataset.metrics == ("si_sdr", "stoi")
    clip = dataset.clip("c")
    np.testing.assert_array_equal(clip.audio, speech + noise)
    np.testing.assert_array_equal(clip.labels["speech"] * 32768, speech)
    assert clip.labels["speech"].dtype == np.float32 and clip.sample_rate_hz == 16_000 and clip.frames.shape == (0, 0, 0, 3) and clip.tags == {}
    assert METRICS["si_sdr"](clip.labels["speech"][None], clip.audio[None]) == pytest.approx(10 * np.log10(np.var(speech) / np.var(noise)), abs=0.2)


def test_voicebank_is_read_as_it_is_published(place):
    """48 kHz, a folder for each half of each split, and a log of what was mixed."""
    place.yaml(VOICEBANK)
    waves = {}
    for name, folder in (("p226_001", "trainset_28spk"), ("p226_002", "trainset_28spk"), ("p286_001", "trainset_28spk"), ("p232_001", "testset")):
        waves[name] = place.pair(f"noisy_{folder}_wav/{name}.wav", f"clean_{folder}_wav/{name}.wav", rate_hz=48_000, samples=24_000, seed=len(waves))
    (place.root / "log_trainset_28spk.txt").write_text("p226_001 cafeteria 0\np226_002 babble 5\np286_001 ssn 10\n")
    (place.root / "log_testset.txt").write_text("p232_001 bus 17.5\r\n")
    assert place.open("train").ids == ["p226_001", "p226_002"] and place.open("calibration").ids == ["p286_001"]
    clip = place.open("test").clip("p232_001")
    assert clip.tags == {"snr_db": 17.5, "noise": "bus"} and len(clip.audio) == len(clip.labels["speech"]) == 8000
    speech, noise = waves["p232_001"]
    np.testing.assert_allclose(clip.audio, resample_poly((speech + noise).astype(float), 1, 3), atol=0.51)
    np.testing.assert_allclose(clip.labels["speech"] * 32768, resample_poly(speech.astype(float), 1, 3), atol=0.51)


def test_the_names_of_dns_are_paired_by_their_number(place):
    place.yaml(DNS)
    names = ["noisy/book_00_reader_1_snr5_fileid_12.wav", "noisy/clnsp1_snr15_tl-21_fileid_2.wav"]
    speech = [place.pair(name, f"clean/clean_fileid_{i}.wav", samples=1000 * i)[0] for name, i in zip(names, (12, 2), strict=True)]
    dataset = place.open()
    assert dataset.ids == ["book_00_reader_1_snr5_fileid_12", "clnsp1_snr15_tl-21_fileid_2"]
    for id, want in zip(dataset.ids, speech, strict=True):
        np.testing.assert_array_equal(dataset.clip(id).labels["speech"] * 32768, want)


def test_a_list_divides_one_folder_and_flac_is_read_too(place):
    place.yaml("dataset: clean_noisy\nroot: ../data\nsplits:\n  train: .\n  test: {list: test.txt}\n")
    for name in "abc":
        place.pair(f"noisy/{name}.flac", f"clean/{name}.wav")
    (place.root / "test.txt").write_text("b.flac\n\na\n")
    assert place.open("test").ids == ["a", "b"] and place.open("train").ids == ["c"]
    assert place.open("test").clip("b").audio.any()


@pytest.mark.parametrize("text", ['{"a": 5, "b.wav": {"snr_db": -2.5, "noise": "wind"}, "other": 0}', '{"a": {"snr_db": 5, "noise": null}, "b": {"snr_db": -2.5, "noise": "wind", "gain": 3}}'])
def test_a_json_says_what_was_mixed(place, text):
    place.plain("test/a", "test/b", "train/x")
    place.yaml(PLAIN + 'mixtures: "{folder}/mixtures.json"\n')
    (place.root / "test/mixtures.json").write_text(text)
    dataset = place.open()
    assert [dataset.clip(id).tags for id in dataset.ids] == [{"snr_db": 5.0}, {"snr_db": -2.5, "noise": "wind"}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", r"mixtures.json: expected \{name: SNR in dB\}, got a list"),
        ('{"c": \n 1,}', "mixtures.json:2: not valid JSON"),
        ('{"c": "5"}', "`snr_db` of c is '5', expected a number"),
        ('{"c": NaN}', "`snr_db` of c is nan"),
        ('{"c": true}', "`snr_db` of c is True"),
        ('{"c": {"noise": "bus"}}', "`snr_db` of c is None"),
        ('{"c": {"snr_db": 1, "noise": 3}}', "`noise` of c is 3, expected text"),
        ('{"d": 5}', "yaml:4: `mixtures` of `test` does not say what was mixed in c"),
    ],
)
def test_a_wrong_list_of_mixtures_is_refused(place, text, says):
    place.plain()
    place.yaml(PLAIN + "mixtures: mixtures.json\n")
    (place.root / "mixtures.json").write_text(text)
    place.refused(says)


@pytest.mark.parametrize(("text", "says"), [("c bus\n", "log.txt:1: `c bus`, expected a name, a noise and its SNR"), ("c bus 1\nc.wav bus 2\n", "log.txt:2: `c.wav` is there twice"), ("c bus loud\n", "log.txt:1:")])
def test_a_wrong_log_is_refused_by_line(place, text, says):
    place.plain()
    place.yaml(PLAIN + "mixtures: log.txt\n")
    (place.root / "log.txt").write_text(text)
    place.refused(says)


def test_halves_of_different_length_or_rate_are_refused_by_name(place):
    place.plain()
    place.pair("test/noisy/c.wav", "test/clean/c.wav", clean_samples=7999)
    place.refused(r"test/noisy/c.wav: 8000 samples, and .*test/clean/c.wav has 7999")
    place.pair("test/noisy/c.wav", "test/clean/c.wav", clean_rate_hz=8000)
    place.refused(r"test/noisy/c.wav: 16000 Hz, and .*test/clean/c.wav has 8000 Hz")


def test_a_file_without_its_other_half_is_refused(place):
    place.plain()
    (place.root / "test/clean/c.wav").rename(place.root / "test/clean/d.wav")
    place.refused(r"test/noisy/c.wav: there is no clean speech `c` in .*test/clean(.|\n)*`match`")
    place.pair("test/noisy/d.wav", "test/clean/d.wav")
    place.pair("test/noisy/c.wav", "test/clean/c.wav")
    (place.root / "test/noisy/d.wav").unlink()
    place.refused(r"test/clean/d.wav: there is no noisy speech of this name, nor of 0 others")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PLAIN.replace("test: test}", "test: tset}"), r"yaml:1: `noisy`: not a folder: .*data/tset/noisy"),
        (PLAIN.replace("../data", "../nothing"), "yaml:2: `root` is not a folder"),
        (PLAIN.replace("test: test}", "test: train}"), "yaml:3: `train/a` is in split `train` and in `test`"),
        (PLAIN.replace("test: test}", "test: {folder: train, names: ['*']}}"), "yaml:3: split `train` is empty\n  hint: other splits have all 2"),
        (PLAIN.replace("test: test}", "test: {folder: test, names: [d*]}}"), r"yaml:3: no recording of `test` is called `d\*`\n  hint: the first of 1 is `c`"),
        (PLAIN.replace("test: test}", "test: {names: [a], list: b}}"), "yaml:3: split `test` has `names` and a `list`"),
        (PLAIN.replace("test: test}", "test: {folder: test, list: no.txt}}"), "yaml:3: `no.txt`: the list do not exist"),
        (PLAIN.replace("test: test}", "test: {folder: test, lists: no.txt}}"), "yaml:3: unknown key `lists`\n  hint: did you mean `list`"),
        (PLAIN.replace("test: test}", "test: 3}"), "yaml:3: `splits.test` must be keys and values, got 3"),
        (PLAIN.replace("test: test}", "test: ../data}"), "`noisy`: folder `../data/noisy` must be a path inside `root`"),
        (PLAIN + "match: 'a('\n", "yaml:4: `match` is not a regular expression"),
        (PLAIN + "match: abc\n", "yaml:4: `match` must have one group, it has 0"),
        (PLAIN + "match: x(.)\n", "noisy/a.wav: `match` finds nothing|clean/a.wav: `match` finds nothing"),
        (PLAIN + "mixtures: none.json\n", "yaml:4: `mixtures`: none.json: the data do not exist"),
    ],
)
def test_a_wrong_description_is_refused_by_line(place, text, says):
    place.plain()
    place.yaml(text)
    place.refused(says)


def test_a_list_that_names_what_is_not_there_is_refused_by_line(place):
    place.plain()
    place.yaml(PLAIN.replace("test: test}", "test: {folder: test, list: t.txt}}"))
    (place.root / "t.txt").write_text("c\nd\n")
    place.refused("t.txt:2: no recording of `test` is called `d`")
    (place.root / "t.txt").write_text("c\nc.wav\n")
    place.refused("t.txt:2: `c` already stands in line 1")


def test_a_link_that_leaves_the_folder_is_refused(place):
    place.plain()
    outside = place.path / "outside.wav"
    (place.root / "test/noisy/c.wav").rename(outside)
    (place.root / "test/noisy/c.wav").symlink_to(outside)
    place.refused("noisy/c.wav: the data are reached by a link that leaves the folder")


def test_damaged_empty_and_doubled_files_are_refused(place):
    place.plain()
    path = place.root / "test/noisy/c.wav"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    place.refused("c.wav: .*(its header says|samples, and)")
    path.write_bytes(b"")
    place.refused("c.wav: an empty file")
    path.write_bytes(b"no sound at all")
    place.refused("c.wav: not sound that can be decoded")
    path.write_bytes(whole)
    path.with_suffix(".flac").write_bytes(whole)
    place.refused("c.(wav|flac): c.(wav|flac) is there as well")


def test_the_digest_follows_content_tags_and_which_clips_and_not_the_place(place, tmp_path):
    place.plain("test/a", "test/b", "train/x")
    first = place.open().digest()
    assert first == place.open().digest() != place.open("test", 1).digest() and place.open("train").digest() != first
    place.pair("test/noisy/b.wav", "test/clean/b.wav", seed=9)
    second = place.open().digest()
    place.yaml(PLAIN + "mixtures: m.json\n")
    (place.root / "m.json").write_text('{"a": 1, "b": 2}')
    assert len({first, second, place.open().digest()}) == 3
    (tmp_path / "elsewhere").mkdir()
    place.root.rename(tmp_path / "elsewhere/data")
    place.yaml(PLAIN.replace("../data", "../elsewhere/data"))
    assert place.open().digest() == second


def test_a_file_that_changes_after_its_digest_is_refused(place):
    place.plain()
    dataset = place.open()
    dataset.digest()
    place.pair("test/noisy/c.wav", "test/clean/c.wav", seed=7)
    with pytest.raises(DataError, match="c.wav: changed since this command began"):
        dataset.clip("c")


def test_a_limit_keeps_the_same_clips_whatever_others_there_are(place):
    place.plain(*(f"test/{name}" for name in "abcdef"), "train/x")
    three = place.open("test", 3).ids
    for name in "abcdef":
        if name not in three:
            for half in ("noisy", "clean"):
                (place.root / "test" / half / f"{name}.wav").unlink()
    assert place.open("test", 3).ids == three == sorted(three)


def test_the_text_of_a_mixture_may_have_a_byte_order_mark(place):
    place.plain()
    place.yaml(PLAIN + "mixtures: m.json\n")
    (place.root / "m.json").write_text(json.dumps({"c": 3}), encoding="utf-8-sig")
    assert place.open().clip("c").tags == {"snr_db": 3.0}


DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTION = DOCS[DOCS.index("## Speech with and without noise") : DOCS.index("## What is refused")]


@pytest.mark.parametrize("loader", [clean_noisy, noisy_speech])
def test_every_key_is_in_the_documentation_and_its_example_is_right(loader, tmp_path):
    assert [key for key in loader.KEYS if f"`{key}`" not in SECTION] == []
    name = loader.__name__.rpartition(".")[2]
    example = re.search(rf"```\n(dataset: {name}\n.*?)```", SECTION, re.DOTALL)[1]
    (tmp_path / "x.yaml").write_text(example)
    schema = loader.CleanNoisy if loader is clean_noisy else loader.NoisySpeech
    assert set(document.load(tmp_path / "x.yaml", schema).splits) == {"train", "calibration", "test"}


def test_opening_a_set_imports_neither_numpy_nor_a_decoder():
    code = "import sys, edgekit.datasets.clean_noisy, edgekit.datasets.noisy_speech\nprint([m for m in ('numpy', 'torch', 'av', 'soundfile', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout.strip() == "[]"
