from __future__ import annotations

import pytest

from tests.backends.tensorrt import recipes


@pytest.fixture(scope="session")
def graphs_of(tmp_path_factory):
    """A function from a recipe's name to its engines' graphs, each recipe exported once."""
    folder = tmp_path_factory.mktemp("recipes")
    made: dict[str, list[recipes.Graphs]] = {}

    def get(name: str) -> list[recipes.Graphs]:
        if name not in made:
            made[name] = list(recipes.graphs(name, folder))
        return made[name]

    return get
