"""How the name of a data set in a recipe becomes an open split."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from edgekit import datasets
from edgekit.datasets import open_dataset, read_description
from edgekit.errors import DataError

GOOD = "dataset: folder\nsplits: {calibration: 4, test: 6}\n"


class FakeSplit:
    def __init__(self, ids):
        self.ids = ids


@pytest.fixture
def opened(monkeypatch):
    """A loader `folder` that records how it was called and gives as many ids as asked for."""
    calls = []

    def open_split(description, split, limit, cache_root):
        calls.append((description, split, limit, cache_root))
        return FakeSplit([f"{split}{i}" for i in range(limit or description["splits"][split])])

    loader = types.SimpleNamespace(open_split=open_split, KEYS=("seed",))
    monkeypatch.setattr(datasets.importlib, "import_module", lambda name: loader)
    return calls


def write(folder: Path, text: str = GOOD, name: str = "cabin") -> Path:
    (folder / "calibration").mkdir(parents=True, exist_ok=True)
    (folder / "calibration" / f"{name}.yaml").write_text(text)
    return folder


def test_a_set_beside_the_recipe_wins_over_one_above_it(tmp_path, opened):
    write(tmp_path, GOOD.replace("6", "7"))
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert len(open_dataset("cabin", "test", None, deep, tmp_path).ids) == 7
    write(deep)
    assert len(open_dataset("cabin", "test", None, deep, tmp_path).ids) == 6


def test_a_set_that_ships_is_found_from_anywhere(tmp_path):
    assert datasets.find_description("synthetic_av", tmp_path).is_file()


def test_the_loader_gets_the_description_as_a_dict_that_knows_its_lines(tmp_path, opened):
    open_dataset("cabin", "test", 3, write(tmp_path, GOOD + "seed: 5\n"), tmp_path / "cache")
    description, split, limit, cache_root = opened[0]
    assert description == {"dataset": "folder", "splits": {"calibration": 4, "test": 6}, "seed": 5}
    assert (split, limit, cache_root) == ("test", 3, tmp_path / "cache")
    assert str(description.error(("seed",), "bad")) == f"{description.path}:3: bad"
    assert str(description.error(("splits", "nope"), "bad")) == f"{description.path}:2: bad"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected keys and values, got an empty file"),
        ("- a\n", "expected keys and values, got a list"),
        ("dataset: [\n", r"cabin.yaml:\d: not valid YAML"),
        ("splits: {test: 1}\n", "cabin.yaml:1: `dataset` is missing"),
        ("dataset: foldr\nsplits: {test: 1}\n", "cabin.yaml:1: unknown dataset `foldr`\n  hint: did you mean `folder`"),
        ("dataset: [folder]\nsplits: {test: 1}\n", "cabin.yaml:1: unknown dataset"),
        ("dataset: folder\n", "`splits` must say"),
        ("dataset: folder\nsplits: 4\n", "cabin.yaml:2: `splits` must say"),
        ("dataset: folder\nsplits:\n  tests: 4\n", "cabin.yaml:3: unknown split `tests`\n  hint: did you mean `test`"),
        ("dataset: folder\nsplits:\n  test: 0\n", "cabin.yaml:3: split `test` needs at least one clip, got 0"),
        ("dataset: folder\nsplits:\n  test: 2.5\n", "cabin.yaml:3: split `test` needs at least one clip, got 2.5"),
        ("dataset: folder\nsplits:\n  test: true\n", "cabin.yaml:3: split `test` needs at least one clip, got True"),
        ("dataset: folder\nsplits:\n  test:\n", "cabin.yaml:3: split `test` needs at least one clip, got None"),
        (GOOD + "dataset: folder\n", "cabin.yaml:3: `dataset` is given twice"),
        (GOOD + "sede: 4\n", "cabin.yaml:3: unknown key `sede`\n  hint: did you mean `seed`"),
        ("a: &x [1]\nb: *x\n", "cabin.yaml:1: anchors and aliases"),
        ("dataset: !!python/object/apply:os.system [x]\n", "cabin.yaml:1: tags are not supported"),
    ],
)
def test_a_wrong_description_is_refused_by_its_line(tmp_path, opened, text, says):
    with pytest.raises(DataError, match=says):
        open_dataset("cabin", "test", None, write(tmp_path, text), tmp_path)


def test_an_unknown_set_names_the_closest_one(tmp_path):
    with pytest.raises(DataError, match="cabins.*\n  hint: did you mean `cabin`") as e:
        open_dataset("cabins", "test", None, write(tmp_path), tmp_path)
    assert e.value.exit_code == 2


@pytest.mark.parametrize("name", ["", "../cabin", "a/b", "/etc/passwd", ".hidden", "a\0b"])
def test_a_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="is not a name"):
        open_dataset(name, "test", None, tmp_path, tmp_path)


def test_a_split_that_is_unknown_or_not_declared_is_refused(tmp_path, opened):
    write(tmp_path)
    with pytest.raises(DataError, match="unknown split `valid`"):
        open_dataset("cabin", "valid", None, tmp_path, tmp_path)
    with pytest.raises(DataError, match="cabin.yaml:2: data set `cabin` has no split `train`\n  hint: it has calibration, test"):
        open_dataset("cabin", "train", None, tmp_path, tmp_path)


def test_more_clips_than_there_are_are_refused(tmp_path, opened):
    write(tmp_path)
    assert len(open_dataset("cabin", "calibration", 4, tmp_path, tmp_path).ids) == 4
    with pytest.raises(DataError, match="cabin.yaml:2: 5 clips asked for, split `calibration` of data set `cabin` has 4"):
        open_dataset("cabin", "calibration", 5, tmp_path, tmp_path)


@pytest.mark.parametrize("limit", [0, -1, True, 2.0, "3"])
def test_a_limit_that_counts_nothing_is_refused(tmp_path, opened, limit):
    with pytest.raises(DataError, match="number of clips must be a positive integer"):
        open_dataset("cabin", "test", limit, write(tmp_path), tmp_path)


def test_a_loader_that_gives_no_clips_is_not_believed(tmp_path, opened, monkeypatch):
    empty = types.SimpleNamespace(open_split=lambda *a: FakeSplit([]), KEYS=())
    monkeypatch.setattr(datasets.importlib, "import_module", lambda name: empty)
    with pytest.raises(DataError, match="cabin.yaml:2: split `test` of data set `cabin` is empty"):
        open_dataset("cabin", "test", None, write(tmp_path), tmp_path)


def test_opening_a_folder_imports_neither_numpy_nor_a_decoder():
    code = (
        "import sys, edgekit.datasets.folder\n"
        "print([m for m in ('numpy', 'torch', 'av', 'soundfile', 'scipy') if m in sys.modules])"
    )
    root = Path(datasets.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_shipped_description_reads():
    root = Path(datasets.__file__).parents[2] / "calibration"
    for path in root.glob("*.yaml"):
        assert read_description(path)["dataset"] in datasets.DATASETS
