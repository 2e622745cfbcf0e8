"""`edgekit systems`: one table for each task out of reports, nothing mixed, nothing by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgekit import cli, systems
from edgekit.errors import IntegrityError, UsageError

ROOT = Path(__file__).parents[1]
INFO = {
    "wa": {"title": "accuracy (WA)", "unit": "%", "direction": "higher"},
    "mae": {"title": "mean absolute error", "unit": "", "direction": "lower"},
    "si_sdr": {"title": "SI-SDR", "unit": "dB", "direction": "higher"},
}


def report(name: str, lead: str = "wa", data: str = "faces", **more) -> dict:
    """What a build's report.json has of what the tables show."""
    change = {"value": -0.3, "low": -0.9, "high": 0.25}
    return {
        "name": name, "lead": lead, "n": 1000, "measured_on": "host", "is_pruned": True, "verdict": "pass", "metric_info": {lead: INFO[lead]}, "data": {"name": data},
        "metrics": {"float": {lead: 84.2}, "pruned": {lead: 84.125}, "artifact": {lead: 83.8}}, "drops": {"int8_cost": {lead: change}, "total": {lead: {**change, "value": -0.4}}},
        "coverage": {"int8_macs": 0.98765, "grade": "measured"}, "sizes": {"artifact": {"engine_bytes": 1_234_567}},
        "target": {"name": "box", "build_on": "host", "runtime": {"name": "Runner", "version": "1"}},
    } | more  # fmt: skip


def written(folder: Path, *reports: dict) -> list[str]:
    paths = []
    for each in reports:
        (folder / each["name"]).mkdir()
        (folder / each["name"] / "report.json").write_text(json.dumps(each))
        paths.append(str(folder / each["name"]))
    return paths


def cells(group: systems.Group, row: int = 0) -> dict[str, str]:
    return dict(zip(group.columns, group.rows[row], strict=True))


def test_a_row_says_what_the_report_says():
    [group] = systems.grouped([report("a", agreement={"value": 99.04, "low": 98.3, "high": 99.6})])
    assert group.title == "faces: accuracy (WA), %, higher is better"
    assert cells(group) == {
        "recipe": "`a`", "device": "box, Runner", "clips": "1 000", "float": "84.20", "pruned": "84.12", "INT8": "83.80", "INT8 cost, 95 %": "−0.30 [−0.90, +0.25]",
        "in all, 95 %": "−0.40 [−0.90, +0.25]", "agreement, %": "99.0 [98.3, 99.6]", "INT8 MACs": "98.8 % measured", "engines": "1.23 MB", "verdict": "pass",
    }  # fmt: skip


def test_tasks_are_not_mixed_and_keep_their_order():
    reports = [report("a"), report("b", "mae"), report("c", data="others"), report("d")]
    groups = systems.grouped(reports)
    assert [[cells(group, i)["recipe"] for i in range(len(group.rows))] for group in groups] == [["`a`", "`d`"], ["`b`"], ["`c`"]]
    assert groups[1].title == "faces: mean absolute error, lower is better" and cells(groups[1])["float"] == "84.2000"


def test_what_was_simulated_and_what_the_device_builds_is_told_as_such():
    kit = report("kit", measured_on="host-simulated", verdict="pending-device", target={"name": "board", "build_on": "device", "runtime": {"name": "Runner", "version": "1"}})
    shown = cells(systems.grouped([kit])[0])
    assert (shown["device"], shown["engines"], shown["verdict"]) == ("board, Runner, simulated", "built there", "pending-device")


def test_of_speech_the_noisy_input_and_the_gain_over_it_are_shown_and_without_pruning_no_column_of_it():
    heard = {"metrics": {"si_sdr": 5.89}, "gain": {"artifact": {"si_sdr": {"value": 9.86, "low": 9.2, "high": 10.5}}}}
    shown = cells(systems.grouped([report("a", "si_sdr", is_pruned=False, input=heard)])[0])
    assert (shown["noisy input"], shown["gain of INT8 over the input, 95 %"]) == ("5.89", "+9.86 [+9.20, +10.50]")
    assert not {"pruned", "in all, 95 %", "agreement, %"} & set(shown)
    mixed = systems.grouped([report("a", is_pruned=False), report("b")])[0]
    assert [cells(mixed, i)["pruned"] for i in (0, 1)] == ["", "84.12"]


def test_what_a_model_is_compared_with_is_shown_for_the_slices_that_gates_look_at():
    change = {"value": -0.02, "low": -0.03, "high": -0.01}
    against = {"plain": {"mae": {"value": 0.2, "over": change}}}
    part = {"metric": "mae", "n": 40, "float": 0.18, "artifact": 0.1812, "total": {**change, "value": 0.0012}, "comparisons": against, "outputs": {"alpha": {"mean": 0.114, "max": 0.3}}}
    slices = [part | {"tag": "snr_db", "value": "-5"}, part | {"tag": "snr_db", "value": "20"}, part | {"tag": "noise", "value": "car"}]
    chain = report("chain", "mae", comparisons=against, slices=slices, gates=[{"name": "mae at snr_db=-5"}, {"name": "int8_macs"}])
    first, by_snr = systems.grouped([report("a", "mae"), chain])
    assert [row[0] for row in first.rows] == ["`a`", "`chain`"] and by_snr.title == "faces: mean absolute error, lower is better, by snr_db"
    assert [cells(by_snr, i)["snr_db"] for i in range(len(by_snr.rows))] == ["−5", "20"]
    assert cells(by_snr) == {
        "recipe": "`chain`", "snr_db": "−5", "clips": "40", "float": "0.1800", "INT8": "0.1812", "INT8 cost, 95 %": "+0.0012 [−0.0300, −0.0100]",
        "plain": "0.2000", "INT8 against plain, 95 %": "−0.0200 [−0.0300, −0.0100]", "alpha, mean": "0.11",
    }  # fmt: skip


def test_the_command_shows_markdown_json_and_a_table(tmp_path):
    paths = written(tmp_path, report("a"), report("b", "mae"))
    run = CliRunner().invoke(cli.app, ["systems", "--markdown", *paths])
    assert run.exit_code == 0 and run.output == systems.markdown(systems.grouped(systems.read(paths)))
    assert re.search(r"^\| `a` \| box, Runner \| 1 000 \|", run.output, re.M) and run.output.count("### faces") == 2
    for line in run.output.splitlines():
        assert line.count("|") in (0, 12), "every row has the columns of its head"
    rows = [json.loads(line) for line in CliRunner().invoke(cli.app, ["systems", "--json", *paths]).output.splitlines()]
    assert [row["recipe"] for row in rows] == ["a", "b"] and rows[0]["values"] == {"float": 84.2, "pruned": 84.125, "artifact": 83.8} and rows[0]["int8_macs"] == 0.98765
    shown = CliRunner().invoke(cli.app, ["systems", *paths]).output
    assert "faces: accuracy (WA), %, higher is better" in shown and "−0.30" in shown and "`" not in shown


def test_tables_go_between_the_marks_of_a_page_and_nothing_else_changes(tmp_path):
    paths = written(tmp_path, report("a"))
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{systems.BEGIN}\nold\n{systems.END}\n\nafter\n")
    for _ in range(2):
        assert CliRunner().invoke(cli.app, ["systems", *paths, "--into", str(page)]).exit_code == 0
        assert page.read_text() == f"before\n\n{systems.BEGIN}\n\n{systems.markdown(systems.grouped(systems.read(paths)))}\n{systems.END}\n\nafter\n"


@pytest.mark.parametrize("text", ["nothing", f"{systems.END}\n{systems.BEGIN}", f"{systems.BEGIN}{systems.BEGIN}{systems.END}"])
def test_a_page_without_its_marks_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UsageError, match="must stand in it once each"):
        systems.embed([], page)
    assert page.read_text() == text
    with pytest.raises(UsageError, match="no such page"):
        systems.embed([], tmp_path / "other.md")


def test_what_is_no_report_of_a_build_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"schema": 1, "matrices": []}))
    with pytest.raises(UsageError, match="not the report of a build, it has no `name`"):
        systems.read([tmp_path])
    with pytest.raises(UsageError, match="no such report") as missing:
        systems.read([tmp_path / "mhlt_xavier/report.json"])
    assert missing.value.hint == "build it first: edgekit build recipes/mhlt_xavier.yaml"
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(IntegrityError):
        systems.read([tmp_path])
    run = CliRunner().invoke(cli.app, ["systems", str(tmp_path / "none")])
    assert run.exit_code == 2


def test_the_page_of_systems_has_its_marks_and_says_nothing_of_papers_between_them():
    text = (ROOT / "docs/systems.md").read_text()
    assert text.count(systems.BEGIN) == text.count(systems.END) == 1
    measured = text.partition(systems.BEGIN)[2].partition(systems.END)[0]
    assert "synthetic_" in measured and not re.search(r"RAVDESS|CH-SIMS|Aff-Wild2|MELD|MOSI|MOSEI|CREMA-D|paper", measured)
    titles = re.findall(r"^### (.*)$", measured, re.M)
    assert titles and all(title.startswith("synthetic_") for title in titles)
