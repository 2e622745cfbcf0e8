"""Feature selection: the fitness against loops, masks that repeat themselves, and features that were planted."""

from __future__ import annotations

import pytest
import torch

from edgekit.models import zebra


def planted(n: int = 300, useful: int = 4, noise: int = 28) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Examples of three classes that a few features tell apart; the places of these."""
    generator = torch.Generator().manual_seed(4)
    classes = torch.arange(n) % 3
    features = torch.randn(n, useful + noise, generator=generator)
    places = torch.randperm(useful + noise, generator=generator)[:useful].sort().values
    centres = 1.0 * torch.randn(3, useful, generator=generator)
    features[:, places] = 0.7 * features[:, places] + centres[classes]
    return features, classes.float(), places.tolist()


def test_the_fitness_is_what_the_docstring_says():
    features, classes, _ = planted(40)
    herd = zebra.Herd(features, classes, 6, torch.Generator().manual_seed(0))
    agent = torch.rand(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = sorted(sorted(range(32), key=lambda i: -agent[i])[:6])
    assert herd.mask(agent).tolist() == chosen
    wrong = 0
    for x, truth in zip(herd.judged, herd.truth, strict=True):
        near = sorted(range(len(herd.known)), key=lambda i: float((herd.known[i, chosen] - x[chosen]).square().sum()))[:5]
        votes = [sum(1 + 1e-3 * (5 - rank) for rank, i in enumerate(near) if herd.answers[i] == c) for c in range(3)]
        wrong += votes.index(max(votes)) != truth
    assert len(herd.judged) == 8 and len(herd.known) == 32
    assert herd.fitness(agent) == pytest.approx(0.99 * wrong / 8 + 0.01 * 6 / 32)


def test_equal_coordinates_favour_no_place():
    features, classes, _ = planted(40)
    ones = torch.ones(32, dtype=torch.float64)
    herds = [zebra.Herd(features, classes, 8, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert torch.equal(herds[0].mask(ones), herds[0].mask(ones)) and herds[0].mask(ones).tolist() != list(range(8))
    mean = torch.stack([herd.mask(ones) for herd in herds]).double().mean()
    assert 13.5 < mean < 17.5, "all places alike would give 15.5"


def test_it_finds_what_tells_the_classes_apart():
    features, classes, places = planted()
    chosen = zebra.select(features, classes, 8, seed=1)
    assert chosen.dtype == torch.int64 and len(chosen) == 8 and (chosen.diff() > 0).all()
    by_chance = 8 / 32 * len(places)
    assert len(set(chosen.tolist()) & set(places)) > 2 * by_chance
    herd = zebra.Herd(features, classes, 8, torch.Generator().manual_seed(9))  # other examples are held out here

    def fitness(mask: torch.Tensor) -> float:
        return herd.fitness(torch.zeros(32, dtype=torch.float64).index_fill(0, mask, 1.0))

    draws = [fitness(torch.randperm(32, generator=torch.Generator().manual_seed(i))[:8]) for i in range(40)]
    assert fitness(chosen) < sum(draws) / len(draws) - 0.1


def test_seed_and_examples_decide():
    features, classes, _ = planted(60)
    one, again, other = (zebra.select(features, classes, 8, seed, agents=6, iterations=6) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize(("count", "n"), [(33, 40), (0, 40), (4, 9)])
def test_what_cannot_be_selected_is_refused(count, n):
    features, classes, _ = planted(n)
    with pytest.raises(ValueError, match=f"{count} of 32 features from {n} examples"):
        zebra.select(features, classes, count, seed=0)
