"""Faults that are planted are found, at the right layer; the same model built again raises no alarm. See planted.py and honest.py."""

from __future__ import annotations

import pytest

from tests.parity import honest, planted
from tests.parity.planted import MODELS, MUTATORS, Absent, Case

FAST = ("foreign", "tiny")
LEAST_FOUND, LEAST_FIRST, MOST_ALARMS = 0.95, 0.90, 0


def campaign(folder, models, mutators=tuple(MUTATORS)) -> list[Case]:
    found = []
    for case in planted.cases(models, mutators):
        try:
            found.append(planted.run(*case, folder))
        except Absent:
            pytest.fail(f"nothing to plant: {case}")
    return found


@pytest.mark.parametrize("mutator", MUTATORS)
def test_planted_faults_are_found_at_the_right_layer(mutator, tmp_path):
    found = campaign(tmp_path, FAST, (mutator,))
    assert len(found) == len(FAST) * 3 * (1 if mutator in (*planted.INT8_ONLY, "bf16 for f32") else 2)
    assert [case for case in found if not case.is_found] == []
    assert [case for case in found if case.has_layer and case.rank != 1] == []


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_planted_nothing_is_no_fault(name, kind, tmp_path):
    """A saved copy without a fault is the same, so what the tests above find is the fault."""
    import edgekit
    from edgekit.parity.bisect import FAULT, bisect

    of = planted.subject(name)
    path = planted.Patient(of.path(kind), of).save(tmp_path / "same.onnx")
    assert edgekit.compare(of.path("float"), path, of.data, threads=1, **of.how)
    rows = bisect(of.path("float"), path, of.data, threads=1, **of.how).rows
    assert rows and not [row for row in rows if row.verdict == FAULT]


@pytest.mark.parametrize("rebuild", [r for r in honest.REBUILDS if r.model in FAST], ids=lambda r: f"{r.model}-{r.name}".replace(" ", "_"))
def test_planted_by_nobody_an_honest_rebuild_raises_no_alarm(rebuild, tmp_path):
    if not rebuild.is_possible:
        pytest.skip(f"{rebuild.needs} is not installed")
    found = honest.judge(rebuild, tmp_path)
    assert found, found.reasons


@pytest.mark.slow
def test_planted_matrix(tmp_path, capsys):
    """The whole matrix with the trained MHLT: twelve mutators, three magnitudes, three models, float and INT8."""
    found = campaign(tmp_path, MODELS)
    with capsys.disabled():
        print(f"\n{planted.table(found)}")
    ranked = [case for case in found if case.has_layer]
    assert {(case.mutator, case.magnitude, case.model) for case in found} == {(name, m, model) for name in MUTATORS for m in planted.MAGNITUDES for model in MODELS}
    assert sum(case.is_found for case in found) >= LEAST_FOUND * len(found), [case for case in found if not case.is_found]
    assert sum(case.rank == 1 for case in ranked) >= LEAST_FIRST * len(ranked), [case for case in ranked if case.rank != 1]


@pytest.mark.slow
def test_planted_by_nobody_twenty_honest_rebuilds_raise_no_alarm(tmp_path):
    possible = [rebuild for rebuild in honest.REBUILDS if rebuild.is_possible]
    alarms = {}
    for i, rebuild in enumerate(possible):
        (tmp_path / str(i)).mkdir()
        found = honest.judge(rebuild, tmp_path / str(i))
        if not found:
            alarms[f"{rebuild.model}: {rebuild.name}"] = found.reasons
    assert len(possible) >= 20 and len(alarms) <= MOST_ALARMS, alarms


def test_planted_table_in_the_docs_is_what_the_command_writes():
    """docs/parity.md holds the table between two marks; `python -m tests.parity.planted --write` makes it."""
    text = (planted.ROOT / "docs/parity.md").read_text()
    block = text.partition(planted.BEGIN)[2].partition(planted.END)[0]
    rows = [line.split("|")[1].strip() for line in block.splitlines() if line.startswith("| ") and not line.startswith("| planted")]
    assert rows == [*MUTATORS, "**all**"]
