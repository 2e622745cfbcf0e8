"""docs/xavier.md is for somebody who types what it says: every command, option and file that it names is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from click.testing import CliRunner

from edgekit.backends.tensorrt import kit
from edgekit.cli import app
from edgekit.recipe import DEVICE_GATES, load_recipe
from tests.backends.tensorrt.kits import make_bundle

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/xavier.md").read_text()
# Of Debian and JetPack; nothing of ours to check.
SYSTEM = {"sudo", "head", "dpkg-query", "mkdir", "zstd", "cd"}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_edgekits_commands_and_options_exist():
    group = typer.main.get_command(app)
    used = [words for words in commands() if words[0] == "edgekit"]
    assert {words[1] for words in used} == {"build", "adopt"}
    for words in used:
        command = group.commands[words[1]]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words[2:] if word.startswith("-")} <= options
        for word in words[2:]:
            if word.startswith("recipes/"):
                assert (ROOT / word).is_file()
    for inline in re.findall(r"`edgekit (\w+)", TEXT):
        assert inline in group.commands
        assert CliRunner().invoke(group, [inline, "--help"]).exit_code == 0


def test_every_other_command_is_make_a_script_of_the_kit_or_the_systems_own(tmp_path):
    bundle, _ = make_bundle(tmp_path)
    scripts = {path.name for path in bundle.glob("*.sh")} | {path.name for path in kit.DEVICE.glob("*.sh")}
    for words in commands():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
        elif words[0] == "sh":
            text = (kit.DEVICE / words[1]).read_text()
            assert words[1] in scripts and all(option in text for option in words[2:] if option.startswith("--"))
        else:
            assert words[0] in {*SYSTEM, "edgekit"}, words


def test_the_steps_are_those_that_finish_sh_says():
    script = (kit.DEVICE / "finish.sh").read_text()
    said = set(re.findall(r'say "([^"]+)"', script))
    listed = [re.sub(r"\s{2,}.*", "", line).strip() for line in re.findall(r"\[\d/9\] (.*)", TEXT)]
    assert len(listed) == 9
    for line in listed:
        assert re.sub(r"build \w+", "build $engine", line) in said


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 130])
def test_every_exit_code_is_explained(code):
    assert re.search(rf"^\| {code} \|", TEXT, re.M)
    assert str(code) in re.search(r"# Exit codes:.*?\nset -eu", (kit.DEVICE / "finish.sh").read_text(), re.S)[0]


def test_the_recipes_gates_load(tmp_path):
    gates = re.search(r"```yaml\n(gates: .*)\n```", TEXT)[1]
    recipe = (ROOT / "recipes/mhlt_xavier.yaml").read_text()
    (tmp_path / "r.yaml").write_text(re.sub(r"^gates: .*$", gates, recipe, flags=re.M))
    assert set(DEVICE_GATES) < set(load_recipe(tmp_path / "r.yaml").gates)


def test_what_nobody_ran_is_said():
    assert "What nobody has run yet" in TEXT and "pending-device" in TEXT
