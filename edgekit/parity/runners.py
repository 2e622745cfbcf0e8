"""A side of a comparison: anything with named inputs and outputs that can be run, however it was made.

`open_side("model.tflite")` opens by what the path is; `KINDS` is the table. A side is

    side.inputs, side.outputs      {name: Port(dtype, shape)}; shape has None where it is free
    side.has_batch                 batch 1 in front of every input and output; a flow's tensors have none
    side.states                    State(input, output, shape, init): fed back from call to call
    side.numbers                   `float`, `int8` or `unknown`
    side.run(feeds, taps=())       {name: array} -> {name: array}: outputs, and the tapped tensors beside them
    side.taps()                    inner tensors that `run` can give out; () where the runtime shows none
    side.info()                    a result.SideInfo
    side.close()                   or use it in a `with` block

A side of one graph takes tensors with batch 1 in front, and its states are ordinary inputs and
outputs: `run` does not carry them, `stream.py` does. A side of a whole flow (a bundle, a recipe)
takes one window without batch axis and carries the states inside it, from zero, as the device does.
Words behind an `@` choose a part: `bundle.tar.zst@head` is one engine, `recipe.yaml@pruned` the
pruned model, `weights.pt@recipe.yaml` other weights in a recipe's model, `model.tflite@2.14` the interpreter of 2023, `model.ekd@step` the
network of a native engine without its spectra. What `run` gets is never changed.
"""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.document import suggestion
from edgekit.errors import DataError, IntegrityError, UsageError
from edgekit.formats import State
from edgekit.parity.result import SideInfo

if TYPE_CHECKING:
    import numpy as np

Arrays = Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class Port:
    """An input or output."""

    dtype: str
    shape: tuple[int | None, ...]
    """None where it is free."""

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


@dataclass(frozen=True)
class Options:
    """How sides are opened.

    Attributes:
        threads: inside one op; all cores if None.
        cache: edgekit's cache, for what a recipe trains or prunes.
        states: pairs that a single graph does not name itself, {input: output}.
    """

    threads: int | None = None
    cache: Path = Path(".edgekit")
    states: Mapping[str, str] | None = None


DEFAULTS = Options()


class Side(ABC):
    """See the module's docstring."""

    kind: str = ""
    numbers: str = "unknown"
    has_batch: bool = True
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    states: tuple[State, ...] = ()
    is_opaque: bool = False
    """Its states say nothing to another side: they can only be carried."""

    def __init__(self, text: str, path: Path):
        self.text, self.path = text, path

    @abstractmethod
    def run(self, feeds: Arrays, taps: Iterable[str] = (), sample: str | None = None) -> dict[str, np.ndarray]:
        """One call.

        Args:
            feeds: every input, states included, in the port's dtype and shape.
            taps: inner tensors, of `taps()`, to give out too.
            sample: id of the sample, which recorded outputs are looked up by.
        """

    def taps(self) -> tuple[str, ...]:
        """Inner tensors that can be given out, in the order they are computed."""
        return ()

    def facts(self) -> dict[str, Any]:
        """What identifies it, JSON-able."""
        return {}

    def info(self) -> SideInfo:
        return SideInfo(
            self.text, self.kind, {k: str(v) for k, v in self.inputs.items()}, {k: str(v) for k, v in self.outputs.items()},
            {s.input: s.output for s in self.states}, self.numbers, self.facts(),
        )  # fmt: skip

    @property
    def data_inputs(self) -> dict[str, Port]:
        """Inputs that are no states."""
        fed_back = {state.input for state in self.states}
        return {name: port for name, port in self.inputs.items() if name not in fed_back}

    def engine_graph(self) -> Path | None:
        """The ONNX file that it computes, for bisection; None where there is none."""
        return None

    def close(self) -> None:  # noqa: B027  most sides hold nothing
        """Let go of processes and extracted files."""

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# How a path is opened: suffixes, and what is called as opener(text, path, words, options).
KINDS: dict[str, tuple[str, str]] = {
    "onnx": (".onnx", "edgekit.parity.graphs:OnnxSide"),
    "openvino": (".xml", "edgekit.parity.graphs:OpenvinoSide"),
    "tflite": (".tflite", "edgekit.parity.graphs:TfliteSide"),
    "recipe": (".yaml .yml", "edgekit.parity.flows:open_recipe"),
    "bundle": (".tar.zst", "edgekit.parity.flows:open_bundle_side"),
    "native": (".ekd", "edgekit.parity.native:open_native"),
    "checkpoint": (".pt .pth .ckpt .bin .safetensors.xz", "edgekit.parity.flows:open_checkpoint"),
    "recorded": (".npz .safetensors", "edgekit.parity.recorded:open_recorded"),
    "float model": ("", "edgekit.parity.flows:open_float_model"),
}
# What a folder is, by a file in it; a report alone is left by a build that missed a gate, and its opener says so.
FOLDERS = {"manifest.json": "bundle", "report.json": "bundle", "model.json": "float model"}


def open_side(text: str | Path | Side, options: Options = DEFAULTS) -> Side:
    """Open whatever `text` names.

    Raises:
        UsageError: nothing is there, it is of no kind that we know, or a word behind `@` is unknown.
        ToolMissing: its runtime is not installed here; the hint names what to install.
        IntegrityError, DataError: the file is damaged, or reaches outside its folder.
    """
    if isinstance(text, Side):
        return text
    path, words = split_words(str(text))
    kind = kind_of(path)
    if kind == "recorded" and recipe_word(words):  # safetensors hold recorded outputs or weights; a recipe says which
        kind = "checkpoint"
    module, _, attribute = KINDS[kind][1].partition(":")
    return getattr(importlib.import_module(module), attribute)(str(text), path, words, options)


def split_words(text: str) -> tuple[Path, tuple[str, ...]]:
    """`model.tflite@2.14` → (model.tflite, ("2.14",)); a path that exists as it is has no words."""
    if Path(text).exists() or "@" not in text:
        return Path(text), ()
    path, _, words = text.rpartition("@")
    return Path(path), tuple(word for word in words.split(",") if word)


def recipe_word(words: Iterable[str]) -> str | None:
    """The recipe of `weights.pt@recipe.yaml`."""
    return next((word for word in words if word.endswith((".yaml", ".yml"))), None)


def kind_of(path: Path) -> str:
    """Which entry of KINDS a path is.

    Raises:
        UsageError: there is nothing, or nothing that we know.
    """
    if not path.exists():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else [], n=1)
        raise UsageError(f"{path}: there is no such file or folder", f"did you mean `{path.parent / near[0]}`?" if near else None)
    if path.is_dir():
        return next((kind for name, kind in FOLDERS.items() if (path / name).is_file()), "recorded")
    for kind, (suffixes, _) in KINDS.items():
        if any(path.name.lower().endswith(suffix) for suffix in suffixes.split()):
            return kind
    known = ", ".join(suffix for suffixes, _ in KINDS.values() for suffix in suffixes.split())
    raise UsageError(f"{path}: not a kind of model that can be compared", f"known: {known}, a folder of a bundle, a float model or recorded outputs")


def refuse_words(text: str, words: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raise unless every word behind `@` is known."""
    known = list(known)
    for word in words:
        if word not in known:
            raise UsageError(f"{text}: nothing is known as `@{word}` here", suggestion(word, known) or "leave out the part behind `@`")


def require_feeds(side: Side, feeds: Arrays) -> None:
    """Names before shapes before values.

    Raises:
        DataError: one sentence on the first thing that does not fit.
    """
    missing, strange = sorted(set(side.inputs) - set(feeds)), sorted(set(feeds) - set(side.inputs))
    if missing or strange:
        parts = [f"{what} {', '.join(f'`{n}`' for n in names)}" for what, names in (("missing", missing), ("unexpected", strange)) if names]
        raise DataError(f"{side.text}: inputs do not match: {'; '.join(parts)}", f"it takes {', '.join(side.inputs) or 'nothing'}; rename with `--map`")
    for name, port in side.inputs.items():
        shape = feeds[name].shape
        if len(shape) != len(port.shape) or any(want is not None and want != got for want, got in zip(port.shape, shape, strict=True)):
            raise DataError(f"{side.text}: input `{name}` has shape {list(shape)}, the model takes {port}")


def pair_states(text: str, inputs: Mapping[str, Port], outputs: Mapping[str, Port], given: Mapping[str, str] | None) -> tuple[State, ...]:
    """States of a single graph: the pairs that were given, else every `x_in` with an `x_out` of its shape and dtype.

    Raises:
        UsageError: a given pair is not there, or its ends differ.
    """
    found = []
    pairs = {name: f"{name.removesuffix('_in')}_out" for name in inputs if name.endswith("_in")} if given is None else given
    for name, partner in pairs.items():
        is_pair = name in inputs and partner in outputs and inputs[name].shape == outputs[partner].shape and inputs[name].dtype == outputs[partner].dtype
        if is_pair and None not in inputs[name].shape:
            found.append(State(name, partner, tuple(int(n) for n in inputs[name].shape if n is not None)))
        elif given is not None:
            raise UsageError(f"{text}: `{name}` and `{partner}` are no state: an input and an output of one fixed shape and dtype", f"inputs: {', '.join(inputs)}; outputs: {', '.join(outputs)}")
    return tuple(found)


def damaged(path: Path, why: object) -> IntegrityError:
    """The one sentence for a file that its runtime refuses."""
    first = next((line.strip() for line in str(why).splitlines() if line.strip()), type(why).__name__)
    return IntegrityError(f"{path}: cannot be loaded: {first[:300]}", "the file is damaged, or of another version of its format")
