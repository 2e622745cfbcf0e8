"""A project of a few clips and a random checkpoint, and edgekit's command line in it.

Only mechanics can be tested on it: nothing in it has learned anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from click.testing import Result
from typer.testing import CliRunner

from edgekit import cli

SPLITS = {"train": 8, "calibration": 4, "test": 6}
SETTINGS = {
    "name": "car",
    "target": "jetson_xavier",
    "load": "{model: tiny, config: tiny, checkpoint: model.safetensors}",
    "calibrate": "{data: cabin, clips: 4}",
    "verify": "{data: cabin}",
    "gates": "{mae: {max_increase: 2.0}}",
}


@dataclass(frozen=True)
class Project:
    """car.yaml, model.safetensors, calibration/cabin.yaml and the folder cabin/ that it reads."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "car.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.root / "model.safetensors"

    @property
    def labels(self) -> Path:
        return self.root / "cabin/labels.csv"

    def clip(self, id: str) -> Path:
        return self.root / f"cabin/{id}.npz"

    def run(self, *arguments: str) -> Result:
        """`edgekit ARGUMENTS...` in this process. The current directory must be the project."""
        assert Path.cwd() == self.root
        return CliRunner().invoke(cli.app, list(arguments))

    def replace(self, path: Path, old: str, new: str) -> int:
        """Replace text that stands once in a file; the number of its line, as messages give it."""
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
        path.write_text(text.replace(old, new))
        return text[: text.index(old)].count("\n") + 1

    def stages(self) -> set[str]:
        """Stages with a published entry in the cache."""
        return {path.parent.name.partition("-")[0] for path in self.root.glob(".edgekit/*/entry.json") if path.parent.parent.name == ".edgekit"}


def make_project(root: Path, model: str = "tiny", **settings: str) -> Project:
    """Write a project whose recipe is SETTINGS changed by `settings`.

    Args:
        model: its configuration `tiny` gets random weights, the same in every project.
        settings: YAML text of recipe keys.
    """
    project = Project(root)
    root.mkdir(parents=True, exist_ok=True)
    load = f"{{model: {model}, config: tiny, checkpoint: model.safetensors}}"
    project.recipe.write_text("".join(f"{key}: {text}\n" for key, text in {**SETTINGS, "load": load, **settings}.items()))
    save_random_weights(model, project.checkpoint)
    write_clips(root)
    return project


def save_random_weights(model: str, path: Path, config: str = "tiny") -> None:
    from safetensors.torch import save_file

    save_file(random_weights(model, config), path)


def random_weights(model: str, config: str = "tiny") -> dict:
    """State dict of a configuration; LSTMs are strong enough for a lost state to show."""
    import torch

    from edgekit import models

    torch.manual_seed(0)
    definition = models.get(model)
    module = definition.fold(definition.build(models.config(model, config)))
    return {key: (4 * value if "lstm" in key else value).contiguous().clone() for key, value in module.state_dict().items()}


def write_clips(root: Path) -> None:
    """calibration/cabin.yaml and cabin/: 16 frames of 20x24 and 0.6 s of sound each, brighter for a better mood."""
    rng = np.random.default_rng(0)
    (root / "cabin").mkdir()
    (root / "calibration").mkdir()
    (root / "calibration/cabin.yaml").write_text("dataset: folder\nroot: ../cabin\nsplits: {train: train, calibration: calibration, test: test}\n")
    rows = ["id,o,a,v,split,snr_db"]
    for split, count in SPLITS.items():
        for i in range(count):
            mood = np.round(rng.uniform(-1, 1, 3), 3)
            frames = np.clip(127 + 90 * mood[0] + 30 * rng.standard_normal((16, 20, 24, 3)), 0, 255).astype(np.uint8)
            audio = np.clip(4000 * (1.5 + mood[1]) * rng.standard_normal(9600), -32768, 32767).astype(np.int16)
            np.savez(root / f"cabin/{split}{i}.npz", frames=frames, fps=25.0, audio=audio, sample_rate_hz=16000)
            rows.append(",".join([f"{split}{i}", *map(str, mood), split, str(5 * (i % 4))]))
    (root / "cabin/labels.csv").write_text("\n".join(rows) + "\n")
