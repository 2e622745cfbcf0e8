"""Target × condition: several models against one, on the data, on slices of it, and on data made harder.

A slice is a part of the samples by a tag that the data set brings (5 dB of noise each). A change is
done to every clip before it is preprocessed, as a covered camera or a dead microphone does it in
the car; a mask puts random values in place of a share of what the model is fed. Labels stay, and the
same clip is changed alike for all sides.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.datasets import Clip
from edgekit.document import suggestion
from edgekit.errors import UsageError
from edgekit.parity.result import Cell, Comparison, Comparisons
from edgekit.parity.runners import FOLDERS, Options, Side, open_side
from edgekit.progress import note

ALL = "all"
BLUR_SHARE = 16  # of the frame's height: what a smeared lens leaves of a face


@dataclass(frozen=True)
class Condition:
    """A change of clips.

    Attributes:
        title: for people.
        change: called as change(clip, rng); rng is the clip's own, the same in every run.
        of: what it changes, `audio` or `video`: nothing to a model that takes none.
        masks: (source of inputs, share of their values that become random), after preprocessing.
    """

    title: str
    of: str
    change: Callable[[Clip, np.random.Generator], Clip] = lambda clip, rng: clip
    masks: tuple[str, float] | None = None


def blurred(frames: np.ndarray, radius: int) -> np.ndarray:
    """uint8 [n, h, w, 3] under two box filters of `radius` pixels each way, edges repeated."""
    out = frames.astype(np.float32)
    for axis in (1, 2, 1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(out, pad, mode="edge"), axis=axis, dtype=np.float64)
        ends = np.moveaxis(sums, axis, 0)
        out = np.moveaxis((ends[2 * radius + 1 :] - ends[: -2 * radius - 1]) / (2 * radius + 1), 0, axis).astype(np.float32)
    return np.rint(out).clip(0, 255).astype(np.uint8)


def noisy(audio: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """int16 [samples] with white noise at `snr_db` of the clip's own power; silence stays silent."""
    power = float(np.mean(audio.astype(np.float64) ** 2)) if audio.size else 0.0
    noise = rng.standard_normal(audio.shape) * np.sqrt(power / 10 ** (snr_db / 10))
    return np.rint(audio + noise).clip(-32768, 32767).astype(np.int16)


CONDITIONS: dict[str, Condition] = {
    "no-audio": Condition("audio silenced", "audio", lambda clip, rng: replace(clip, audio=np.zeros_like(clip.audio))),
    "no-video": Condition("video blanked", "video", lambda clip, rng: replace(clip, frames=np.zeros_like(clip.frames))),
    "blur": Condition("video blurred", "video", lambda clip, rng: replace(clip, frames=blurred(clip.frames, max(1, clip.frames.shape[1] // BLUR_SHARE)))),
    "noise-10": Condition("white noise at 10 dB", "audio", lambda clip, rng: replace(clip, audio=noisy(clip.audio, 10, rng))),
    "noise-0": Condition("white noise at 0 dB", "audio", lambda clip, rng: replace(clip, audio=noisy(clip.audio, 0, rng))),
}
# The protocol by which ATTSF-Net's robustness was measured: 10 to 90 % of one modality's values are random.
MASKING = {
    f"mask-{source}-{percent}": Condition(f"{percent} % of {source} random", source, masks=(source, percent / 100)) for source in ("audio", "video") for percent in range(10, 100, 10)
}
GROUPS = {ALL: tuple(CONDITIONS), "masking": tuple(MASKING)}
CONDITIONS |= MASKING


def chosen(text: str) -> tuple[str, ...]:
    """Names with commas between; `all` stands for what may happen in a car, `masking` for every mask.

    Raises:
        UsageError: a name is not known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CONDITIONS and name not in GROUPS:
            raise UsageError(f"--conditions {text}: `{name}` is not known", suggestion(name, [*GROUPS, *CONDITIONS]))
    return tuple(dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,))))


def changed(name: str, clip: Clip) -> Clip:
    """The clip under condition `name`."""
    return CONDITIONS[name].change(clip, np.random.default_rng(zlib.crc32(clip.id.encode())))


def masked(name: str, inputs: Mapping[str, np.ndarray], spec: Mapping[str, Any], id: str) -> dict[str, np.ndarray]:
    """A clip's preprocessed inputs under condition `name`: pixels become uniform between black and white, others normal with the clip's own deviation."""
    from edgekit.preprocess import sources

    mask = CONDITIONS[name].masks
    if mask is None:
        return dict(inputs)
    source, share = mask
    rng = np.random.default_rng(zlib.crc32(f"{name} {id}".encode()))
    of = sources(dict(spec))
    return {key: _masked(value, share, rng, spec.get("video") if source == "video" else None) if of[key] == source else value for key, value in inputs.items()}


def _masked(value: np.ndarray, share: float, rng: np.random.Generator, video: Mapping[str, Any] | None) -> np.ndarray:
    if video is None:
        noise = rng.standard_normal(value.shape) * value.std()
    else:
        shape = [3 if axis == "C" else 1 for axis in video["layout"]]
        mean, std = (np.reshape(video[key], shape) for key in ("mean", "std"))
        noise = (rng.uniform(0, 255, value.shape) - mean) / std
    return np.where(rng.random(value.shape) < share, noise, value).astype(value.dtype)


def fitting(names: Sequence[str], *sides: Side) -> tuple[tuple[str, ...], str]:
    """(conditions that change something of what the models take, one sentence on those that do not, or "").

    Raises:
        UsageError: there are some, and all of them change nothing.
    """
    from edgekit.parity.flows import EngineSide, FlowSide

    flows = [side.whole if isinstance(side, EngineSide) else side for side in sides]
    specs = [flow.preprocess for flow in flows if isinstance(flow, FlowSide) and flow.preprocess is not None]
    if not specs or not names:  # what the data are says whether they are clips at all
        return tuple(names), ""
    # As data sets are read: the first that says how clips become inputs.
    kept = tuple(name for name in names if CONDITIONS[name].of in specs[0])
    left = [name for name in names if name not in kept]
    if not left:
        return kept, ""
    absent = " or ".join(dict.fromkeys(CONDITIONS[name].of for name in left))
    said = f"{', '.join(left)} {'was' if len(left) == 1 else 'were'} left out: the models take no {absent}"
    if not kept:
        raise UsageError(f"--conditions {', '.join(left)}: the models take no {absent}, so nothing would change", "choose others, such as " + ", ".join(name for name in GROUPS[ALL] if CONDITIONS[name].of in specs[0]))
    return kept, said


def title(condition: str) -> str:
    return CONDITIONS[condition].title if condition in CONDITIONS else condition


def sides_of(text: str) -> list[str]:
    """A folder of bundles as the bundles in it; anything else as it is."""
    folder = Path(text)
    if not folder.is_dir() or any((folder / name).is_file() for name in FOLDERS):
        return [text]
    return [str(path.parent) for path in sorted(folder.glob("*/manifest.json"))] or [text]


def compare_all(a: str | Path | Side, sides: Sequence[str | Path | Side], data: Any = None, conditions: Sequence[str] = (), **options: Any) -> Comparisons:
    """Every side against A.

    Args:
        a, data, options: as for `check.compare`.
        conditions: of CONDITIONS; each is one more run of everything over the whole data.

    Returns:
        One comparison per side; its `conditions` are its row of the table: all samples, their slices, and `conditions`.

    Raises:
        As `check.compare`; UsageError where `conditions` are asked for and the data are no clips.
    """
    from edgekit.parity.check import compare, with_gaps

    is_shared = data is not None and (len(sides) > 1 or bool(conditions))  # without data two bundles are compared as releases, unopened
    with ExitStack() as stack:
        if is_shared and not isinstance(a, Side):
            a = stack.enter_context(open_side(a, _options(options)))
        found = []
        for text in sides:
            with ExitStack() as one:
                b = one.enter_context(open_side(text, _options(options))) if is_shared and not isinstance(text, Side) else text
                kept, left_out = fitting(conditions, *(side for side in (a, b) if isinstance(side, Side)))
                if left_out:
                    note(left_out)
                clean = compare(a, b, data, **options)
                cells = _cells(clean, ALL) + _slice_cells(clean)
                # What a side may be off is measured once, on the data as they are.
                same = {**options, **_limits(clean), "keep": 0, "on_sample": None}
                for name in kept:
                    cells += _cells(compare(a, b, data, condition=name, **same), name)
                made = with_gaps(replace(clean, conditions=tuple(cells)))
                found.append(replace(made, provenance={**made.provenance, "open": [*made.provenance["open"], *([left_out] if left_out else [])]}))
    return Comparisons(tuple(found))


def _options(options: Mapping[str, Any]) -> Options:
    return Options(options.get("threads"), Path(options.get("cache", ".edgekit")), options.get("states"))


def _limits(found: Comparison) -> dict[str, Any]:
    """The limits that were measured, as limits that are given."""
    measured = {o.name: o.tolerance.min_sqnr_db for o in found.outputs if o.tolerance.min_sqnr_db is not None and o.tolerance.why != "as given"}
    return {"min_sqnr_db": measured} if len(measured) == len(found.outputs) else {}


def _cells(found: Comparison, condition: str) -> list[Cell]:
    cells = []
    for output in found.outputs:
        lead = next((m for m in found.metrics if m.output == output.name), None)
        worth = () if lead is None else (lead.metric, lead.a, lead.b, lead.low, lead.high)
        cells.append(Cell(found.b.text, condition, output.name, found.data.samples if found.data else 0, output.errors.max_abs, output.errors.sqnr_db, output.is_within, *worth))
    return cells


def _slice_cells(found: Comparison) -> list[Cell]:
    return [Cell(found.b.text, f"{s.tag} {s.value}", s.output, s.samples, s.max_abs, s.sqnr_db, s.is_within, s.metric, s.a, s.b, s.low, s.high) for s in found.slices]
