"""Reading other people's checkpoints: safetensors, or torch files with weights only; never a pickle that runs code.

What is accepted, whoever saved it: a bare state dict, or one under `state_dict`, `net`, `model`,
`model_state_dict` or `module`; `module.` in front of every key (DataParallel); float16 or
bfloat16; heads that the model does not have. What is not: missing keys, other shapes, NaN.
"""

from __future__ import annotations

import difflib
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKED = ".safetensors.xz"
MAX_UNPACKED = 4 << 30  # bytes; a bomb of zeros is a few kB

WRAPPERS = ("state_dict", "model_state_dict", "net", "model", "module")
# What torch.load raises for a file that is cut off or has wrong bytes in it, besides UnpicklingError: nearly anything.
_DAMAGE = (
    RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError,
    OverflowError, MemoryError, OSError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, unwrapped.

    Raises:
        CheckpointError: missing, truncated, a full pickle, or without any tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint", "paths in a recipe are relative to the recipe")
    readers = {".xz": _read_packed, ".safetensors": _read_safetensors}
    state = readers.get(path.suffix, _read_torch)(path)
    for wrapper in WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    import torch

    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors", f"expected a state dict, or one under {', '.join(WRAPPERS)}")
    if all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def read_parts(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """The tensors of a model that is put together of several checkpoints: the name of each part goes before its keys; "" is the only one's."""
    return {f"{part}.{key}" if part else key: value for part, path in files.items() for key, value in read_state(path).items()}


def provenance_of(path: Path) -> Path:
    """The JSON beside a checkpoint: `x.json` of `x.safetensors` and of `x.safetensors.xz`."""
    return path.with_name(path.name.removesuffix(".xz")).with_suffix(".json")


def pack(weights: bytes) -> bytes:
    """safetensors as .xz. Positions count by twos, so that the two bytes of a float16 are modelled apart: 8 % smaller than xz's default."""
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 2, "lp": 1, "pb": 1}]
    return lzma.compress(weights, format=lzma.FORMAT_XZ, filters=filters)


def _read_packed(path: Path) -> dict:
    """A .safetensors.xz.

    Raises:
        CheckpointError: damaged, or larger unpacked than any checkpoint.
    """
    import lzma

    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with lzma.open(path) as file:
            weights = file.read(MAX_UNPACKED + 1)
        if len(weights) > MAX_UNPACKED:
            raise CheckpointError(f"{path}: unpacks to more than {MAX_UNPACKED >> 30} GiB", "no checkpoint is that large; unpack it yourself if it is meant")
        return load(weights)
    except (lzma.LZMAError, EOFError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole .safetensors.xz ({error})", "copy it again; it may be truncated") from error


def _read_safetensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})", "copy it again; it may be truncated") from error


def _read_torch(path: Path) -> dict:
    import pickle

    import torch

    try:
        with warnings.catch_warnings():  # a damaged header makes torch guess aloud before it fails
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Operand 149 opens a frame: Python's own pickles begin so, torch's never do.
        if re.search(r"GLOBAL|call reduce|Can only|operand 149", str(error)):
            raise CheckpointError(
                f"{path}: holds Python objects besides weights, and loading those runs code",
                "save only `model.state_dict()`, best as .safetensors",
            ) from error
        raise CheckpointError(f"{path}: not a torch checkpoint", "copy it again; it may be damaged, or another kind of file") from error
    except _DAMAGE as error:
        first = type(error).__name__ if isinstance(error, LookupError) or not str(error) else str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a whole torch checkpoint ({first})", "copy it again; it may be truncated") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return dict(state)


def load_into(module: nn.Module, state: Mapping[str, Tensor], where: Path, optional: tuple[str, ...] = ()) -> list[str]:
    """Load a normalised state dict; return the checkpoint's keys that the module has no use for.

    Args:
        optional: keys that a checkpoint may leave out.

    Raises:
        CheckpointError: missing keys, other shapes, values that are quantized or not finite; each by name.
    """
    import torch

    own = module.state_dict()
    # BatchNorm's step counters say nothing at inference, and old checkpoints lack them.
    missing = [k for k in own if k not in state and k not in optional and not k.endswith("num_batches_tracked")]
    if missing:
        share = len(missing) / len(own)
        if share > 0.5:
            raise CheckpointError(
                f"{where}: another model's checkpoint: {len(missing)} of {len(own)} weights are missing, first `{missing[0]}`; it has `{next(iter(state))}`",
                "check `load.model` and `load.config`",
            )
        close = difflib.get_close_matches(missing[0], list(state), n=1)
        raise CheckpointError(
            f"{where}: {len(missing)} weights are missing: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}",
            f"the nearest key in the file is `{close[0]}`" if close else "the checkpoint is partial",
        )
    for key, value in own.items():
        if key in state and state[key].shape != value.shape:
            raise CheckpointError(
                f"{where}: `{key}` is {list(state[key].shape)}, this model has {list(value.shape)}",
                "check `load.config`: the checkpoint is of another size",
            )
        if key in state and value.is_floating_point() and not (state[key].is_floating_point() and state[key].layout is torch.strided):
            raise CheckpointError(f"{where}: `{key}` holds {state[key].dtype}, not plain floats", "give the float checkpoint; edgekit quantizes it itself")
    for key in own:
        if key in state and not state[key].isfinite().all():
            bad = int((~state[key].isfinite()).sum())
            raise CheckpointError(f"{where}: `{key}` has {bad} values that are NaN or infinite", "the training diverged, or the file is damaged")
    module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    return sorted(set(state) - set(own))
