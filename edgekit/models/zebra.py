"""Feature selection by the "Improved Zebra Algorithm": which k of many features tell classes apart, from labelled examples alone.

Kirar et al. 2024 name the algorithm and give no equation. This is the zebra optimiser of Trojovská et al. 2022 with the improvements
that public variants have: a golden-sine step towards the best (Tanyildizi and Demir 2017), and a random newcomer in place of the worst.

An agent is a point of [0, 1]^features; its mask is the k largest coordinates. Of equal ones, and clipped ones are, those go first that
come first in one order drawn at the start: by their number, the first features would always win. Its fitness, which is
to be small, is 0.99 * (share of wrong answers of a 5-nearest-neighbour vote on a fifth of the examples, by the other four) + 0.01 * k /
features. A step is taken where it makes an agent better, and all coordinates are clipped to [0, 1]. Iteration t = 0..T-1, r are draws
of [0, 1), one for each coordinate, best is the fittest agent, I is 1 or 2:

    foraging   x + A r (best - I x),  A = 2 a rand - a,  a = 2 - 2 t/T
    defence    one half of the time  x + 0.1 (2 r - 1) (1 - t/T) x,  else  x + r (y - I x), y a random agent
    golden     x |sin p| - q sin(p) |g1 best - g2 x|,  p of [0, 2 pi), q of [0, pi), g1 = -pi + 2 pi (1 - s), g2 = -pi + 2 pi s, s = (sqrt 5 - 1)/2
    newcomer   a random point in place of the worst agent

All draws come from one generator, so the same examples and seed give the same mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

AGENTS, ITERATIONS = 20, 50
NEIGHBOURS = 5
HELD_OUT = 0.2
_GOLDEN = (math.sqrt(5) - 1) / 2
_G1, _G2 = -math.pi + 2 * math.pi * (1 - _GOLDEN), -math.pi + 2 * math.pi * _GOLDEN


class Herd:
    """Examples that masks are judged on.

    Args:
        features: [n, f], of comparable scale; classes: [n] integers.
        count: features of a mask.
    """

    def __init__(self, features: Tensor, classes: Tensor, count: int, generator: torch.Generator):
        order = torch.randperm(len(features), generator=generator)
        held = max(1, round(HELD_OUT * len(order)))
        self.judged, self.known = features[order[:held]], features[order[held:]]
        self.truth, self.answers = classes[order[:held]].long(), classes[order[held:]].long()
        self.first = torch.randperm(features.shape[1], generator=generator)
        self.count, self.classes = count, int(classes.max()) + 1
        # A vote of the nearer counts a little more, so that there are no ties.
        self.votes = 1 + 1e-3 * torch.arange(min(NEIGHBOURS, len(self.known)), 0, -1, dtype=torch.float64)

    def mask(self, agent: Tensor) -> Tensor:
        """int64 [count], ascending."""
        return self.first[agent[self.first].argsort(descending=True, stable=True)[: self.count]].sort().values

    def fitness(self, agent: Tensor) -> float:
        chosen = self.mask(agent)
        judged, known = self.judged[:, chosen], self.known[:, chosen]
        distances = known.square().sum(1) - 2 * judged @ known.T  # |judged|^2 is the same for all that are compared
        nearest = self.answers[distances.topk(len(self.votes), largest=False, sorted=True).indices]
        tally = torch.zeros(len(judged), self.classes, dtype=torch.float64).scatter_add_(1, nearest, self.votes.expand(len(judged), -1))
        wrong = float((tally.argmax(1) != self.truth).double().mean())
        return 0.99 * wrong + 0.01 * self.count / len(agent)


def select(features: Tensor, classes: Tensor, count: int, seed: int, agents: int = AGENTS, iterations: int = ITERATIONS) -> Tensor:
    """The `count` features to keep: int64 [count], ascending.

    Args:
        features: [n, f] of training examples, brought to zero mean and unit variance; classes: [n].

    Raises:
        ValueError: fewer features than `count`, or too few examples to vote.
    """
    n, width = features.shape
    if not 1 <= count <= width or n < 2 * NEIGHBOURS:
        raise ValueError(f"{count} of {width} features from {n} examples cannot be selected; {2 * NEIGHBOURS} examples are the least")
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    herd = Herd(features.float(), classes, count, generator)
    x = rand(agents, width)
    fitness = [herd.fitness(agent) for agent in x]

    def move(i: int, to: Tensor) -> None:
        to = to.clamp(0, 1)
        if (reached := herd.fitness(to)) < fitness[i]:
            x[i], fitness[i] = to, reached

    def best() -> Tensor:
        return x[min(range(agents), key=fitness.__getitem__)].clone()

    for t in range(iterations):
        left = 1 - t / iterations
        for i in range(agents):
            a = 2 * left
            step, twice = 2 * a * rand(1) - a, 1 + int(rand(1) < 0.5)
            move(i, x[i] + step * rand(width) * (best() - twice * x[i]))
            if rand(1) < 0.5:
                move(i, x[i] + 0.1 * (2 * rand(width) - 1) * left * x[i])
            else:
                other, twice = x[int(rand(1) * agents)].clone(), 1 + int(rand(1) < 0.5)
                move(i, x[i] + rand(width) * (other - twice * x[i]))
            p, q = 2 * math.pi * rand(1), math.pi * rand(1)
            move(i, x[i] * p.sin().abs() - q * p.sin() * (_G1 * best() - _G2 * x[i]).abs())
        move(max(range(agents), key=fitness.__getitem__), rand(width))
    return herd.mask(best())
