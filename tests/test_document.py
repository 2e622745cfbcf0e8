"""Every mistake in a YAML file is told with its line, and no file can do harm."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import document
from edgekit.document import Schema
from edgekit.errors import EdgekitError, RecipeError, UsageError


class Inner(Schema):
    size: int
    share: float = 0.5
    names: tuple[str, ...] = ()


class Outer(Schema):
    title: str
    inner: Inner
    table: dict[str, Inner] = {}  # noqa: RUF012, pydantic copies it


GOOD = "title: x\ninner:\n  size: 3\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "f.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_good_file_loads(write):
    loaded = document.load(write("title: x\ninner: {size: 3, share: 1, names: [a, b]}\ntable: {k: {size: 1}}"), Outer)
    assert loaded.inner == Inner(size=3, share=1.0, names=("a", "b")) and loaded.table["k"].size == 1


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (GOOD + "tabel: {}\n", "f.yaml:4: unknown key `tabel`", "did you mean `table`?"),
        (GOOD + "  sise: 1\n", "f.yaml:4: unknown key `sise`", "did you mean `size`?"),
        (GOOD + "table: {k: {siez: 1}}\n", "f.yaml:4: unknown key `siez`", "did you mean `size`?"),
        (GOOD + "zzz: 1\n", "f.yaml:4: unknown key `zzz`", "known: `title`, `inner`, `table`"),
        ("title: x\ninner: {share: 1.0}\n", "f.yaml:2: `inner.size` is missing", None),
        ("title: x\n\n\ninner:\n  size: big\n", "f.yaml:5: `inner.size` must be a whole number, got `big`", None),
        ("title: x\ninner: {size: '3'}\n", "f.yaml:2: `inner.size` must be a whole number, got `3`", "remove the quotes"),
        ("title: x\ninner: {size: 3.5}\n", "f.yaml:2: `inner.size` must be a whole number, got 3.5", None),
        ("title: x\ninner: {size: true}\n", "f.yaml:2: `inner.size` must be a whole number, got true", None),
        ("title: 5\ninner: {size: 3}\n", "f.yaml:1: `title` must be text, got 5", "quotes"),
        ("title: x\ninner: 3\n", "f.yaml:2: `inner` must be keys and values, got 3", None),
        ("title: x\ninner:\n", "f.yaml:2: `inner` must be keys and values, got nothing", None),
        ("title: x\ninner: {size: 3, names: [a, 5]}\n", "f.yaml:2: `inner.names[1]` must be text, got 5", None),
        ("title: x\ninner: {size: 3, names: a}\n", "f.yaml:2: `inner.names` must be a list, got `a`", None),
        ("title: x\ninner: {size: 3, share: .nan}\n", "f.yaml:2: `inner.share` must be a finite number, got NaN", None),
        ("title: x\ntitle: y\n", "f.yaml:2: `title` is given twice", "line 1"),
        ("title: x\ninner:\n  size: 1\n  size: 2\n", "f.yaml:4: `inner.size` is given twice", "line 3"),
        ("title: x\n1: y\n", "f.yaml:2: a key must be a word, got `1`", None),
        ("? {a: 1}\n: 2\n", "f.yaml:1: a key must be a word, got keys and values", None),
        ("title: &a x\ninner: *a\n", "f.yaml:1: anchors and aliases are not supported", None),
        ("title: !!python/object/apply:os.system [ls]\n", "f.yaml:1: tags are not supported", None),
        ("title: !!str x\n", "f.yaml:1: tags are not supported", None),
        ("title: x\n---\ntitle: y\n", "f.yaml:2: a second document", None),
        ("title: [x\n", "not valid YAML", None),
        ("title: x\n\tinner: 3\n", "f.yaml:2: not valid YAML", None),
        ("a: b: c\n", "f.yaml:1: not valid YAML", None),
        ("", "f.yaml: expected keys and values, got an empty file", None),
        ("- a\n", "f.yaml: expected keys and values, got a list", None),
        ("x", "f.yaml: expected keys and values, got `x`", None),
        (b"\xff\xfe\x00", "f.yaml: not UTF-8", None),
        ("title: \x07\n", "f.yaml: not valid YAML", None),
    ],
)
def test_a_mistake_is_told_with_its_line(write, text, message, hint):
    with pytest.raises(RecipeError) as caught:
        document.load(write(text), Outer)
    assert message in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


def test_unknown_keys_come_first_since_they_explain_missing_ones(write):
    with pytest.raises(RecipeError, match="unknown key `titel`") as caught:
        document.load(write("inner: {size: 3}\ntitel: x\n"), Outer)
    assert "1 more mistake" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "value"),
    [("on", "on"), ("no", "no"), ("012", 12), ("12:30", "12:30"), ("1e-3", 0.001), ("1_000", "1_000"), ("2020-01-01", "2020-01-01"), ("~", None),
     ("null", None), ("true", True), ("-3", -3), ("-.5", -0.5), ("+1.", 1.0), ("0x10", "0x10"), ("<<", "<<"), ("=", "="), ("-.inf", -float("inf"))],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(write, text, value):
    assert document.read(write(f"a: {text}")).data == {"a": value}


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "[" * 5000 + "]" * 5000, "{a: " * 3000, "- " * 3000, "? " * 3000])
def test_deep_nesting_is_refused_at_once(write, text):
    before = time.perf_counter()
    with pytest.raises(RecipeError):
        document.read(write(text))
    assert time.perf_counter() - before < 5


def test_a_billion_laughs_are_refused(write):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(RecipeError, match="aliases"):
        document.read(write("\n".join(lines)))


def test_huge_files_and_numbers_are_refused(write):
    with pytest.raises(RecipeError, match="bytes, at most"):
        document.read(write("a: " + "x" * (2 << 20)))
    with pytest.raises(RecipeError, match="digits"):
        document.read(write("a: " + "1" * 10_000))


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        document.read(tmp_path / "f.yaml")
    with pytest.raises(RecipeError, match="a folder"):
        document.read(tmp_path)


def test_a_missing_file_hints_at_its_neighbour(tmp_path):
    (tmp_path / "mhlt_xavier.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"did you mean `.*/mhlt_xavier\.yaml`"):
        document.read(tmp_path / "mhlt_xaver.yaml")


@pytest.mark.parametrize(
    ("override", "data"),
    [
        ("inner.size=4", {"title": "x", "inner": {"size": 4}}),
        ("inner.names=[a, b]", {"title": "x", "inner": {"size": 3, "names": ["a", "b"]}}),
        ("inner={size: 1}", {"title": "x", "inner": {"size": 1}}),
        ("table.k.size=1", {"title": "x", "inner": {"size": 3}, "table": {"k": {"size": 1}}}),
        ("title=a=b", {"title": "a=b", "inner": {"size": 3}}),
        ("inner=", {"title": "x", "inner": None}),
        ("title.deep=1", {"title": {"deep": 1}, "inner": {"size": 3}}),
    ],
)
def test_an_override_replaces_a_value(write, override, data):
    assert document.read(write(GOOD), [override]).data == data


def test_a_mistake_in_an_override_names_the_override(write):
    with pytest.raises(RecipeError, match="command line `inner.size=big`: `inner.size` must be a whole number"):
        document.load(write(GOOD), Outer, ["inner.size=big"])
    with pytest.raises(RecipeError, match="command line `iner.size=1`: unknown key `iner`"):
        document.load(write(GOOD), Outer, ["iner.size=1"])


@pytest.mark.parametrize("override", ["x", "=1", ".=1", "a..b=1", ""])
def test_what_is_no_override_is_refused(write, override):
    with pytest.raises(UsageError, match="is not key.path=value"):
        document.read(write(GOOD), [override])


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_no_text_is_anything_but_data_or_our_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode())
    try:
        document.load(path, Outer)
    except EdgekitError as error:
        assert error.exit_code == 2


def test_where_names_the_nearest_written_parent(write):
    path = write(GOOD)
    read = document.read(path, ["inner.share=1"])
    assert read.where("inner.size") == f"{path}:3"
    assert read.where("inner.names") == f"{path}:2"
    assert read.where("inner.share") == "command line `inner.share=1`"
    assert read.where("other") == f"{path}:1"


def test_a_data_file_is_found_beside_then_upward_then_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = tmp_path / "a/b/recipes"
    recipes.mkdir(parents=True)
    for folder in ("a/b/recipes/targets", "a/b/targets", "targets"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "targets/x.yaml").write_text("")
    assert document.find("targets", "x", recipes).resolve() == tmp_path / "targets/x.yaml"
    (tmp_path / "a/b/targets/x.yaml").write_text("")
    assert document.find("targets", "x", recipes).resolve() == tmp_path / "a/b/targets/x.yaml"
    (recipes / "targets/x.yaml").write_text("")
    assert document.find("targets", "x", recipes) == recipes / "targets/x.yaml"
    own = tmp_path / "wheel"
    own.mkdir()
    (own / "y.yaml").write_text("")
    monkeypatch.setattr(document, "shipped", lambda folder: own)
    assert document.find("targets", "y", recipes) == own / "y.yaml"
    with pytest.raises(RecipeError, match="no `targets/z.yaml`"):
        document.find("targets", "z", recipes)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".hidden", "x\x00"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(RecipeError, match="is not a name"):
        document.find("targets", name, tmp_path)
