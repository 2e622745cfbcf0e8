"""What a target takes, and how it says no."""

from __future__ import annotations

import pytest

from edgekit.errors import RecipeError, TargetError
from edgekit.target import OpRule, check, load_target, problems


@pytest.fixture
def target(workspace):
    return load_target("toy", workspace / "recipes")


def ops(op="Conv", rank=4, dtype="float32", opset=17, count=1, engine="main"):
    return {"opset": opset, "ops": [{"engine": engine, "op": op, "rank": rank, "dtype": dtype, "count": count}]}


def test_a_model_within_the_table_has_no_problems(target):
    assert problems(target, ops()) == []
    assert problems(target, ops("Relu", rank=9, dtype="float16")) == []  # no limits given
    check(target, ops())


@pytest.mark.parametrize(
    ("uses", "problem"),
    [
        (ops("Einsum"), "`Einsum` in engine `main` is not in the table"),
        (ops("Einsum", count=4, engine="head"), "`Einsum` in engine `head` 4 times is not in the table"),
        (ops(dtype="float64"), "`Conv` in engine `main` has dtype float64, taken: float32"),
        (ops(rank=6), "`Conv` in engine `main` has rank 6, taken: 4, 5"),
        (ops(opset=18), "opset 18 is used, at most 17 is taken"),
    ],
)
def test_what_the_table_lacks_is_named(target, uses, problem):
    assert problems(target, uses) == [problem]
    with pytest.raises(TargetError) as caught:
        check(target, uses)
    assert problem in str(caught.value) and "TensorRT 8.5.2" in str(caught.value) and caught.value.exit_code == 4


def test_what_a_rewrite_removes_is_fine_before_and_not_after(target):
    assert problems(target, ops(rank=3)) == []
    assert problems(target, ops(rank=3), rewritten=True) == ["`Conv` in engine `main` has rank 3, taken: 4, 5"]
    assert problems(target, ops("LayerNormalization")) == []
    assert "should have been rewritten by `layer_norm_to_primitives`" in problems(target, ops("LayerNormalization"), rewritten=True)[0]
    assert problems(target, ops(rank=4), rewritten=True) == []


def test_many_problems_are_told_once_each_and_not_all(target):
    uses = {"opset": 17, "ops": [{"engine": "main", "op": f"Op{i}", "rank": 1, "dtype": "float32", "count": 1} for i in range(20)] * 2}
    assert len(problems(target, uses)) == 20
    with pytest.raises(TargetError, match="and 12 more"):
        check(target, uses)


def test_int8_may_be_limited_to_some_ranks():
    rule = OpRule(int8=True, int8_ranks=(4, 5))
    assert rule.takes_int8(4) and not rule.takes_int8(3) and rule.takes_int8()
    assert not OpRule().takes_int8(4)


def test_notes_and_sources_do_not_enter_a_key(target, workspace):
    path = workspace / "targets/toy.yaml"
    before = target.spec()
    path.write_text(path.read_text().replace("Relu: {}", "Relu: {note: n, source: s}").replace("a device for tests", "another text"))
    assert load_target("toy", workspace).spec() == before
    path.write_text(path.read_text().replace("opset_max: 17", "opset_max: 16"))
    assert load_target("toy", workspace).spec() != before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("symmetric: true", "symmetric: false", "`zero_point` is for symmetric activations"),
        ("divisor: 127", "divisor: 128", "`numbers.activation.divisor`"),
        ("Relu: {}", "Relu: {dtype: [float32]}", "unknown key `dtype`\n  hint: did you mean `dtypes`?"),
        ("by: layer_norm_to_primitives", "by: layer_nrm", "unknown rewrite `layer_nrm`"),
        ("zero_point: 0", "zero_point: 3", "`numbers.activation.zero_point` cannot be 3"),
        ("opset_max: 17", "opset_max: high", "targets/toy.yaml:6: `opset_max` must be a whole number"),
        ('version: "8.5.2"', "version: 8.5", "`runtime.version` must be text, got 8.5"),
        ("name: toy", "name: other", "`name` is `other`, the file is `toy.yaml`"),
    ],
)
def test_a_wrong_target_file_is_told_with_its_line(workspace, old, new, message):
    path = workspace / "targets/toy.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_target("toy", "recipes")
    assert message in str(caught.value)


def test_an_unknown_target_hints_at_the_closest(workspace):
    with pytest.raises(RecipeError, match=r"no `targets/tyo.yaml`\n  hint: did you mean `toy`"):
        load_target("tyo", "recipes")
