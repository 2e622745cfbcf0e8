"""Outputs that somebody wrote down: .npz or .safetensors, one file or a folder of them; never a pickle.

One file may hold many samples in two ways: keys `<sample>/output/<name>` (and `<sample>/input/<name>`),
as golden.safetensors has them, or plain names whose arrays have one sample per row. In a folder
each file is a sample, called by its stem.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekit.artifact import directory_digest, file_digest
from edgekit.errors import DataError, IntegrityError, UsageError
from edgekit.parity.runners import Arrays, Options, Port, Side, refuse_words

SUFFIXES = (".npz", ".safetensors")
MAX_BYTES = 16 << 30  # of one file's arrays, before they are believed
_KEYED = re.compile(r"(?P<sample>.+)/(?P<part>input|output)/(?P<name>[^/]+(?:/[^/]+)*)")


class Tensors:
    """The arrays of one file by name, read when asked for.

    Raises:
        DataError: no such file.
        IntegrityError: it is damaged, holds Python objects, or claims more than MAX_BYTES.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such file", "give .npz or .safetensors")
        self._file: Any
        try:
            if path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                        raise IntegrityError(f"{path}: unpacks to more than {MAX_BYTES >> 30} GiB")
                self._file = np.load(path, allow_pickle=False)
                self.names = list(self._file.files)
            else:
                from safetensors import SafetensorError, safe_open

                try:
                    self._file = safe_open(path, framework="numpy")
                except SafetensorError as error:
                    raise IntegrityError(f"{path}: not a whole safetensors file ({error})", "copy it again") from None
                self.names = list(self._file.keys())
        except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
            raise IntegrityError(f"{path}: not a whole .npz file ({error})", "copy it again, or save it with numpy.savez") from None

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            array = self._file[name] if self.path.suffix == ".npz" else self._file.get_tensor(name)
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, TypeError) as error:
            raise IntegrityError(f"{self.path}: `{name}` cannot be read ({error})", "save plain arrays; Python objects are never loaded") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":  # bytes: a member of the zip that is no array
            raise IntegrityError(f"{self.path}: `{name}` holds {getattr(array, 'dtype', 'bytes')}, expected real numbers", "save plain arrays")
        return array


class Recording:
    """Samples of one part (`input` or `output`), from a file or a folder.

    Attributes:
        ids: samples, in order.
        names: tensors of the samples.
    """

    def __init__(self, path: Path, part: Literal["input", "output"], ignore: Iterable[str] = ()):
        self.path, self.part = path, part
        self._rows: dict[str, np.ndarray] = {}
        self._labels: dict[str, dict[str, float]] = {}  # sample -> {output: label}
        self._where: dict[str, tuple[Tensors, dict[str, str]]] = {}  # sample -> (its file, {name: key})
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: holds no .npz or .safetensors", "save one file per sample, named by the sample")
        for file in files:
            self._add(Tensors(file), file.stem if path.is_dir() else None, set(ignore))
        self.ids = list(self._where) or [str(i) for i in range(min((len(rows) for rows in self._rows.values()), default=0))]
        if not self.ids:
            raise DataError(f"{path}: holds no {part}s", f"keys are tensor names, or `<sample>/{part}/<name>`")
        self.names = list(self._rows) or sorted(set.union(*(set(keys) for _, keys in self._where.values())))

    def _add(self, tensors: Tensors, sample: str | None, ignore: set[str]) -> None:
        keyed = [match for name in tensors.names if (match := _KEYED.fullmatch(name))]
        for match in keyed:
            if match["part"] == self.part:
                self._where.setdefault(match["sample"], (tensors, {}))[1][match["name"]] = match[0]
        if keyed:
            return
        plain = {name.removeprefix(f"{self.part}/"): name for name in tensors.names if not name.startswith(("label/", "tag/", "input/" if self.part == "output" else "output/")) and name not in ignore}
        labels = {name.removeprefix("label/"): tensors[name] for name in tensors.names if name.startswith("label/")}
        if sample is not None:
            if plain:
                self._where[sample] = (tensors, plain)
                self._labels[sample] = {name: float(value) for name, value in labels.items() if value.size == 1}
            return
        self._rows = {name: tensors[key] for name, key in plain.items()}
        for name, values in labels.items():
            for i, value in enumerate(np.atleast_1d(values)):
                self._labels.setdefault(str(i), {})[name] = float(value)
        lengths = {name: len(rows) if rows.ndim else 0 for name, rows in self._rows.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{tensors.path}: arrays have different numbers of samples: {', '.join(f'`{n}` {k}' for n, k in lengths.items())}", "the first axis counts samples")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for sample in self.ids:
            yield sample, self[sample]

    def __getitem__(self, sample: str) -> dict[str, np.ndarray]:
        if self._rows:
            return {name: rows[int(sample)] for name, rows in self._rows.items()}
        tensors, keys = self._where[sample]
        return {name: tensors[key] for name, key in keys.items()}

    def labels(self, sample: str) -> dict[str, float]:
        """{output: label}, from keys `label/<output>`."""
        return self._labels.get(sample, {})

    def digest(self) -> str:
        return directory_digest(self.path) if self.path.is_dir() else file_digest(self.path)


class RecordedSide(Side):
    """Looked up by the sample's id; where the ids of the data are other ones and as many, by their order."""

    kind = "recorded"

    def __init__(self, text: str, path: Path):
        super().__init__(text, path)
        self.recording = Recording(path, "output")
        first = self.recording[self.recording.ids[0]]
        self.inputs = {}
        self.outputs = {name: Port(value.dtype.name, value.shape) for name, value in first.items()}
        self.has_batch = all(value.shape[:1] == (1,) for value in first.values())

    def run(self, feeds: Arrays, taps: Iterable[str] = (), sample: str | None = None) -> dict[str, np.ndarray]:
        for name in taps:
            raise UsageError(f"{self.text}: `{name}` was not recorded")
        if sample is None or sample not in self.recording.ids:
            raise DataError(f"{self.text}: sample `{sample}` was not recorded", f"there are {len(self.recording)}, the first is `{self.recording.ids[0]}`")
        return self.recording[sample]

    def rename(self, ids: Sequence[str]) -> None:
        """Take the recorded samples to be `ids`, in order, if they have other names and are as many.

        Raises:
            DataError: they are not.
        """
        if set(ids) <= set(self.recording.ids):
            return
        if len(ids) != len(self.recording):
            missing = next(name for name in ids if name not in self.recording.ids)
            raise DataError(f"{self.text}: {len(self.recording)} samples were recorded, the data has {len(ids)}, and `{missing}` is not among them", "record outputs of the same data")
        recorded, self.recording = self.recording, _Renamed(self.recording, dict(zip(ids, self.recording.ids, strict=True)))  # type: ignore[assignment]
        del recorded

    def facts(self) -> dict[str, Any]:
        return {"sha256": self.recording.digest(), "samples": len(self.recording)}


class _Renamed:
    """A recording under other ids."""

    def __init__(self, recording: Recording, names: dict[str, str]):
        self._recording, self._names, self.ids = recording, names, list(names)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, sample: str) -> dict[str, np.ndarray]:
        return self._recording[self._names[sample]]

    def digest(self) -> str:
        return self._recording.digest()


def open_recorded(text: str, path: Path, words: tuple[str, ...], options: Options) -> RecordedSide:
    refuse_words(text, words)
    return RecordedSide(text, path)
