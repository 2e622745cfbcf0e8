"""DCCRN++: DCCRN with GRUs, a loss on the band of wind noise, and a loss that holds speech to the lips.

The published GRU is bidirectional: it needs a whole window, and its masks are as late as the window is long. The
`causal` configurations have a GRU that runs forward only, with twice the units, and stream as DCCRN does.

The lips are a matter of training only. A module that is given `module.sync`, two frozen encoders as one callable (video [n, ...],
speech [n, s]) -> (lips [n, d], sound [n, d]), and batches with `video` is also taught that the two agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .. import losses
from . import dccrn
from .dccrn import (  # the model protocol
    HALF,
    OPTIONAL_KEYS,
    OUTPUT,
    TINY,
    UNPRUNABLE,
    Config,
    balance,
    build,
    engines,
    flow,
    fold,
    for_training,
    io_spec,
    normalize_keys,
    preprocess_spec,
    prune_groups,
    remix,
    towers,
)

__all__ = [
    "CONFIGS", "Config", "OPTIONAL_KEYS", "UNPRUNABLE", "balance", "build", "engines", "flow", "fold", "for_training", "io_spec", "loss", "normalize_keys", "preprocess_spec",
    "prune_groups", "remix", "towers", "train_forward",
]  # fmt: skip

_BOTH_WAYS = {"rnn": "gru", "is_bidirectional": True, "samples": 16_000}
CONFIGS = {
    "default": Config(hidden=64, **_BOTH_WAYS),
    "default_causal": Config(rnn="gru"),
    "half": Config(channels=HALF, hidden=32, **_BOTH_WAYS),
    "half_causal": Config(channels=HALF, rnn="gru", hidden=64),
    "half_causal_chunk": Config(channels=HALF, rnn="gru", hidden=64, chunk=16),
    "tiny": Config(**{**_BOTH_WAYS, **TINY}, hidden=4),
    "tiny_causal": Config(**TINY, rnn="gru", hidden=8),
}
BAND_WEIGHT, SYNC_WEIGHT = 1.0, 0.1


def train_forward(module: dccrn.DCCRN, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As DCCRN's; with lips to go by, also what the frozen encoders make of them and of the speech."""
    outputs = dccrn.train_forward(module, batch)
    if module.training and getattr(module, "sync", None) is not None and "video" in batch:
        outputs["lips"], outputs["sound"] = module.sync(batch["video"], outputs[OUTPUT])
    return outputs


def loss(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """-SI-SNR + 1.0 * band loss (Eq. 14) + 0.1 * sync loss, the last where the outputs have lips."""
    cost = dccrn.loss(outputs, labels) + BAND_WEIGHT * losses.band_loss(outputs[OUTPUT], labels[OUTPUT]).mean()
    return cost + SYNC_WEIGHT * losses.sync_loss(outputs["lips"], outputs["sound"]).mean() if "lips" in outputs else cost
