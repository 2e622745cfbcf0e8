"""Sides of a whole flow: a recipe's float model, a bundle; or one engine of either.

A window goes in without batch axis and the outputs come out so; states start at their init with
every window, as on the device. `@ENGINE` opens one engine alone, with batch 1 and its states open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import backends
from edgekit.artifact import file_digest
from edgekit.bundle import Bundle, open_bundle
from edgekit.cache import Cache
from edgekit.errors import IntegrityError, TargetError, ToolMissing, UsageError
from edgekit.flow import run_flow, runs_per_window
from edgekit.formats import State, engines_of, read_json
from edgekit.parity.graphs import load_onnx
from edgekit.parity.runners import DEFAULTS, Arrays, Options, Port, Side, recipe_word, refuse_words, require_feeds

if TYPE_CHECKING:
    import numpy as np

    from edgekit.float_model import FloatModel
    from edgekit.recipe import Recipe

GRAPH_FLOW = "graph_flow.json"  # of the graphs, which export writes where the artifact's own flow is another

Session = Callable[[dict[str, "np.ndarray"]], Mapping[str, "np.ndarray"]]


@dataclass(frozen=True)
class Ports:
    """One engine's own tensors, batch 1 in front."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    states: tuple[State, ...] = ()


class FlowSide(Side):
    """Engines and the flow that wires them. Taps are `<engine>/<output>`, the runs of a window one after another along the first axis.

    Attributes:
        preprocess: preprocess.json's content, from clips to `inputs`; None if it has none.
    """

    has_batch = False

    def __init__(self, text: str, path: Path, kind: str, numbers: str, flow: Mapping[str, Any], sessions: Mapping[str, Session], ports: Mapping[str, Ports], preprocess: Mapping[str, Any] | None, facts: Mapping[str, Any]):
        super().__init__(text, path)
        self.kind, self.numbers, self.flow, self.sessions, self.ports = kind, numbers, dict(flow), dict(sessions), dict(ports)
        self.preprocess, self._facts = preprocess, dict(facts)
        self.inputs = {name: Port(want["dtype"], tuple(want["shape"])) for name, want in flow["inputs"].items()}
        self.outputs = {name: _flow_port(flow, ports, name) for name in flow["outputs"]}

    def run(self, feeds: Arrays, taps: Iterable[str] = (), sample: str | None = None) -> dict[str, np.ndarray]:
        import numpy as np

        require_feeds(self, feeds)
        seen: dict[str, list[np.ndarray]] = {name: [] for name in taps}

        def tap(engine: str, _: Mapping, outputs: Mapping[str, np.ndarray]) -> None:
            for port, value in outputs.items():
                if f"{engine}/{port}" in seen:
                    seen[f"{engine}/{port}"].append(np.asarray(value))

        outputs = run_flow(self.flow, self.sessions, feeds, tap if seen else None)
        return {**outputs, **{name: np.concatenate(values) for name, values in seen.items()}}

    def taps(self) -> tuple[str, ...]:
        order = engines_of(self.flow)
        return tuple(f"{name}/{port}" for name in order for port in self.ports[name].outputs)

    def facts(self) -> dict[str, Any]:
        audio = (self.preprocess or {}).get("audio") or {}
        return {**self._facts, **({"sample_rate_hz": audio["sample_rate_hz"]} if "sample_rate_hz" in audio else {})}

    def engines(self) -> tuple[str, ...]:
        return tuple(self.sessions)

    def stateful(self) -> tuple[str, ...]:
        """Engines that carry a state."""
        return tuple(name for name, ports in self.ports.items() if ports.states)

    def engine(self, name: str) -> EngineSide:
        """One engine of it; they share the session."""
        return EngineSide(self, name)

    def graph_of(self, engine: str) -> Path | None:
        """The engine's ONNX file, where it has one."""
        return None


class EngineSide(Side):
    """One engine of a flow, alone: batch 1, states are inputs and outputs."""

    def __init__(self, whole: FlowSide, name: str):
        super().__init__(whole.text, whole.path)
        self.whole, self.name = whole, name
        self.kind, self.numbers = whole.kind, whole.numbers
        self.inputs, self.outputs, self.states = whole.ports[name].inputs, whole.ports[name].outputs, whole.ports[name].states
        self.is_opaque = whole.is_opaque

    def run(self, feeds: Arrays, taps: Iterable[str] = (), sample: str | None = None) -> dict[str, np.ndarray]:
        require_feeds(self, feeds)
        for name in taps:
            raise UsageError(f"{self.text}: `{name}` is not given out by an engine of a {self.kind}", "compare its ONNX file to look inside")
        return dict(self.whole.sessions[self.name](dict(feeds)))

    def facts(self) -> dict[str, Any]:
        return {**self.whole.facts(), "engine": self.name}

    def engine_graph(self) -> Path | None:
        return self.whole.graph_of(self.name)

    def close(self) -> None:
        self.whole.close()


def _flow_port(flow: Mapping[str, Any], ports: Mapping[str, Ports], tensor: str) -> Port:
    """dtype and shape of what a flow gives out, from the port that it comes from, or from the host's step that makes it."""
    for host in flow.get("host_steps", ()):
        if host.get("give") == tensor and "samples" in host:
            return Port("float32", (host["samples"],))
    for step in flow["steps"]:
        for way, front in (("give", ()), ("stack", (runs_per_window(dict(flow)).get(step["engine"]),))):
            for port, name in step.get(way, {}).items():
                if name == tensor:
                    made = ports[step["engine"]].outputs[port]
                    return Port(made.dtype, (*front, *made.shape[1:]))
    raise IntegrityError(f"flow.json: no step gives `{tensor}`")


def _chosen(side: FlowSide, words: Iterable[str], known: tuple[str, ...]) -> Side:
    """The whole flow, or the one engine that a word names."""
    rest = [word for word in words if word not in known]
    refuse_words(side.text, rest[:1], (*known, *side.engines()))
    refuse_words(side.text, rest[1:], known)
    return side.engine(rest[0]) if rest else side


# --------------------------------------------------------------------------- a recipe's float model


def open_recipe(text: str, path: Path, words: tuple[str, ...] = (), options: Options = DEFAULTS) -> Side:
    """The float model of a recipe, run by torch: its checkpoint, or with `@pruned` what its last build pruned.

    Raises:
        RecipeError, CheckpointError: the recipe or the checkpoint is wrong.
        UsageError: `@pruned`, and the cache holds no pruned model of this recipe as it is now.
    """
    from edgekit.recipe import load_recipe

    recipe = load_recipe(path, (), options.cache)
    side = _pruned(text, path, recipe, options) if "pruned" in words else _original(text, path, recipe)
    return _chosen(side, words, ("original", "pruned"))


def open_float_model(text: str, path: Path, words: tuple[str, ...] = (), options: Options = DEFAULTS) -> Side:
    """A float model's directory, such as the output of load or prune."""
    from edgekit.float_model import FloatModel

    return _chosen(_float_side(text, path, FloatModel.open(path), {"weights_sha256": file_digest(path / "model.safetensors")}), words, ())


def open_checkpoint(text: str, path: Path, words: tuple[str, ...] = (), options: Options = DEFAULTS) -> Side:
    """Weights in the model that a recipe names, run by torch: `weights.safetensors@recipe.yaml`, or `...@recipe.yaml,ENGINE`.

    Raises:
        UsageError: no recipe stands behind the `@`.
        RecipeError, CheckpointError: the recipe is wrong, or the weights are not this model's.
    """
    from edgekit.recipe import load_recipe

    named = recipe_word(words)
    if named is None:
        raise UsageError(f"{text}: weights alone do not say which model they are of", f"name a recipe with that model: `{path}@recipe.yaml`")
    recipe = load_recipe(Path(named), (f"load.checkpoint={path.absolute()}",), options.cache)
    return _chosen(_original(text, path, recipe), [word for word in words if word != named], ())


def _original(text: str, path: Path, recipe: Recipe) -> FlowSide:
    from edgekit import models
    from edgekit.float_model import torch_session
    from edgekit.models import checkpoint

    models.require_config(recipe.load.model, recipe.load.config)
    models.require_parts(recipe.load.model, recipe.load.checkpoint)
    files = recipe.checkpoints()
    definition = models.get(recipe.load.model)
    config = models.config(recipe.load.model, recipe.load.config)
    module = definition.fold(definition.build(config)).eval()
    checkpoint.load_into(module, definition.normalize_keys(checkpoint.read_parts(files), config), next(iter(files.values())), definition.OPTIONAL_KEYS)
    engines = definition.engines(module, config)
    flow = {**definition.flow(config), "states": {e.name: [s.to_json() for s in e.states] for e in engines if e.states}}
    digests = {part: file_digest(file) for part, file in files.items()}
    facts = {"recipe": recipe.name, "model": f"{recipe.load.model}/{recipe.load.config}", "which": "original", "checkpoint_sha256": digests.get("", digests)}
    sessions = {e.name: torch_session(e) for e in engines}
    return FlowSide(text, path, "torch", "float", flow, sessions, _torch_ports(engines), definition.preprocess_spec(config), facts)


def _pruned(text: str, path: Path, recipe: Recipe, options: Options) -> FlowSide:
    """What prune published in the last build of this recipe, if that was of this checkpoint and these settings."""
    from edgekit.float_model import FloatModel

    hint = f"`edgekit build {path}` makes it"
    with Cache(options.cache) as cache:
        stages = cache.recall(recipe.name).get("stages", {})
        entry = cache.find(stages["prune"]["key"]) if "prune" in stages else None
    if entry is None:
        raise UsageError(f"{text}: the cache {options.cache} holds no pruned model of `{recipe.name}`", hint)
    files = stages.get("load", {}).get("parts", {}).get("files", {})
    was = stages["prune"]["parts"]["spec"], {key.partition(".")[2]: digest for key, digest in files.items() if key.partition(".")[0] == "checkpoint"}
    wish = recipe.section("prune") or {}
    changed = [key for key in ("importance", "macs", "only", "protect") if key in wish and key in was[0] and _as_list(was[0][key]) != _as_list(wish[key])]
    if changed or was[1] != {part: file_digest(file) for part, file in recipe.checkpoints().items()}:
        what = f"`prune.{changed[0]}`" if changed else "the checkpoint"
        raise UsageError(f"{text}: {what} has changed since `{recipe.name}` was pruned", hint)
    facts = {"recipe": recipe.name, "which": "pruned", "weights_sha256": file_digest(entry.out / "model.safetensors")}
    return _float_side(text, path, FloatModel.open(entry.out), facts)


def _as_list(value: Any) -> Any:
    """Tuples and lists of one content are equal."""
    return list(value) if isinstance(value, tuple | list) else value


def _float_side(text: str, path: Path, model: FloatModel, facts: Mapping[str, Any]) -> FlowSide:
    from edgekit.float_model import torch_session

    engines = model.engines()
    named = {**facts, "model": f"{model.meta['model']}/{model.meta['config_name']}"}
    return FlowSide(text, path, "torch", "float", model.flow, {e.name: torch_session(e) for e in engines}, _torch_ports(engines), model.preprocess, named)


def _torch_ports(engines: Iterable[Any]) -> dict[str, Ports]:
    def ports(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Port]:
        return {name: Port("float32", tuple(shape)) for name, shape in shapes.items()}

    return {e.name: Ports(ports(e.inputs), ports(e.outputs), tuple(e.states)) for e in engines}


# --------------------------------------------------------------------------- a bundle


def open_bundle_side(text: str, path: Path, words: tuple[str, ...] = (), options: Options = DEFAULTS) -> Side:
    """A bundle whose hashes are checked: its engines where they run here, else their simulation (`@simulation` asks for it).

    Raises:
        IntegrityError: a file is damaged, missing or not the bundle's own.
        ToolMissing: the backend's runtime is not installed here.
    """
    bundle = open_bundle(path)
    try:
        bundle.verify()
        side = BundleSide(text, path, bundle, "simulation" in words, options)
        return _chosen(side, words, ("simulation",))
    except BaseException:
        bundle.close()
        raise


class BundleSide(FlowSide):
    """Engines of a bundle.

    Attributes:
        bundle: the opened one; closing the side removes an extracted copy.
        is_simulated: ONNX Runtime computes the target's numbers in place of the device.
    """

    def __init__(self, text: str, path: Path, bundle: Bundle, simulate: bool, options: Options):
        self.bundle = bundle
        manifest = bundle.manifest
        spec = target_spec(manifest, text)
        backend = backends.get(spec["backend"])
        self.is_simulated = simulate or not backend.EXECUTES
        if not self.is_simulated:
            require_backend(backend, spec)
        flow, io = read_json(bundle.path / "flow.json"), read_json(bundle.path / "io.json")
        names = engines_of(flow)
        sessions: dict[str, Session] = {}
        for name in names:
            folder = bundle.path / "engines" / name
            if not folder.is_dir():
                raise IntegrityError(f"{text}: flow.json names engine `{name}`, which is not in `engines/`")
            sessions[name] = self._simulation(folder, spec, options) if self.is_simulated else backend.open(folder, spec, options.threads)
        facts = {
            "bundle": manifest.get("name"), "manifest_sha256": manifest.get("sha256"), "target": spec["name"], "verdict": manifest.get("verdict"),
            "runtime": f"{spec['runtime']['name']} {spec['runtime']['version']}", "computed": "simulated by onnxruntime" if self.is_simulated else "the artifact itself",
            **coverage_of(bundle),
        }  # fmt: skip
        preprocess = read_json(bundle.path / "preprocess.json") if (bundle.path / "preprocess.json").is_file() else None
        self.stepwise: Stepwise | None = None
        if (bundle.path / GRAPH_FLOW).is_file():  # io.json describes the graphs
            ports = {name: _whole_ports(flow, read_json(bundle.path / GRAPH_FLOW), name) for name in names}
            super().__init__(text, path, "bundle", "int8", flow, sessions, ports, preprocess, facts)
            self.stepwise = Stepwise(self)
        else:
            super().__init__(text, path, "bundle", "int8", flow, sessions, {name: _json_ports(io, name) for name in names}, preprocess, facts)

    def stateful(self) -> tuple[str, ...]:
        return super().stateful() if self.stepwise is None else self.stepwise.stateful()

    def engine(self, name: str) -> EngineSide:
        return super().engine(name) if self.stepwise is None else self.stepwise.engine(name)

    def _simulation(self, folder: Path, spec: Mapping[str, Any], options: Options) -> Session:
        from edgekit.backends import onnxruntime

        model = folder / "model.onnx"
        if not model.is_file():
            raise UsageError(f"{self.bundle.source}: engine `{folder.name}` holds no ONNX graph to simulate", "leave out `@simulation`: the artifact itself is run")
        load_onnx(model)
        if (folder / "calibration.cache").is_file():
            return onnxruntime.Session(_with_scales(folder, spec), options.threads)
        return onnxruntime.simulate(model, options.threads)

    def graph_of(self, engine: str) -> Path | None:
        path = self.bundle.path / "engines" / engine / "model.onnx"
        return path if path.is_file() else None

    def close(self) -> None:
        for session in (*self.sessions.values(), *(self.stepwise.sessions.values() if self.stepwise is not None else ())):
            if hasattr(session, "close"):
                session.close()
        self.bundle.close()


class Stepwise(FlowSide):
    """A native bundle as its graphs' flow: the host makes the spectra, and the engine's network runs frame by frame."""

    is_opaque = True

    def __init__(self, whole: BundleSide):
        from edgekit import native
        from edgekit.backends.native import FILE
        from edgekit.parity.native import NativeStep

        self._whole = whole
        path = whole.bundle.path
        steps = {name: NativeStep(whole.text, path / "engines" / name / FILE, native.Denoiser(path / "engines" / name / FILE)) for name in whole.sessions}
        states = {name: [state.to_json() for state in step.states] for name, step in steps.items()}
        flow = {**read_json(path / GRAPH_FLOW), "states": states}
        ports = {name: Ports(dict(step.inputs), dict(step.outputs), step.states) for name, step in steps.items()}
        super().__init__(whole.text, whole.path, whole.kind, whole.numbers, flow, steps, ports, whole.preprocess, whole._facts)  # type: ignore[arg-type]

    def close(self) -> None:
        self._whole.close()


def _whole_ports(flow: Mapping[str, Any], graph_flow: Mapping[str, Any], engine: str) -> Ports:
    """Ports of an engine that computes the whole flow: batch 1 before the flow's own shapes."""
    [step] = [one for one in flow["steps"] if one["engine"] == engine]
    inputs = {port: Port(flow["inputs"][name]["dtype"], (1, *flow["inputs"][name]["shape"])) for port, name in step["feed"].items()}
    made = {host["give"]: host["samples"] for host in graph_flow.get("host_steps", ()) if "samples" in host}
    return Ports(inputs, {port: Port("float32", (1, made[name])) for port, name in step["give"].items()})


def coverage_of(bundle: Bundle) -> dict[str, Any]:
    """{"coverage": how much of it is INT8, by engine and op}, where its report says so."""
    coverage = bundle.report.get("coverage")
    kept = ("grade", "int8_macs", "macs", "engines", "ops")
    return {"coverage": {key: coverage[key] for key in kept if key in coverage}} if isinstance(coverage, Mapping) else {}


def target_spec(manifest: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The rules of a bundle's target. The manifest names it; its table is edgekit's, of the same runtime.

    Raises:
        IntegrityError: the manifest names no target.
        TargetError: the table here is of another runtime than the bundle was built for.
    """
    from edgekit.target import load_target

    named = manifest.get("target")
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str) or not isinstance(named.get("runtime"), Mapping):
        raise IntegrityError(f"{text}: manifest.json names no target")
    if isinstance(named.get("spec"), Mapping):
        return dict(named["spec"])
    spec = load_target(named["name"]).spec()
    if spec["runtime"] != dict(named["runtime"]):
        was, now = (f"{r.get('name')} {r.get('version')}" for r in (named["runtime"], spec["runtime"]))
        raise TargetError(f"{text}: built for {was}, target `{spec['name']}` is {now} here", "build it again, or compare with the edgekit that built it")
    return spec


def require_backend(backend: Any, spec: Mapping[str, Any]) -> None:
    """Refuse where what the backend needs to run is not installed."""
    absent = [name for name, version in backend.versions(spec).items() if version is None]
    if absent:
        hint = backend.install_hint(absent[0]) if hasattr(backend, "install_hint") else f"pip install 'edgekit[{spec['backend']}]'"
        raise ToolMissing(f"{absent[0]} is not installed here, target `{spec['name']}` needs it", hint)


def _with_scales(folder: Path, spec: Mapping[str, Any]) -> bytes:
    """The graph of a TensorRT 8.5 kit with Q/DQ where its cache and precisions put INT8: what the device computes."""
    import onnx_ir as ir

    from edgekit import graph, qdq
    from edgekit.backends.tensorrt import cache
    from edgekit.quant import Numbers, Range

    numbers = Numbers.from_target(spec["numbers"])
    model = graph.load(folder / "model.onnx")
    _, scales = cache.read_cache((folder / "calibration.cache").read_text(encoding="utf-8"), f"{folder.name}/calibration.cache")
    is_int8 = {name for name, precision in read_json(folder / "precisions.json").items() if precision == "int8"}
    skip = {node.name: "not INT8 in precisions.json" for node in model.graph if node.op_type in graph.MAC_OPS and node.name not in is_int8}
    ops = {op: rule for op, rule in spec["ops"].items() if rule.get("int8") or "." in op}
    chosen = qdq.precisions(model, ops, skip, numbers.outputs)
    divisor = spec["numbers"]["activation"]["divisor"]
    ranges = {name: Range(-scale * divisor, scale * divisor) for name, scale in scales.items()}
    return ir.to_proto(qdq.insert_qdq(model, chosen, ranges, numbers)).SerializeToString()


def _json_ports(io: Mapping[str, Any], engine: str) -> Ports:
    try:
        described = io["engines"][engine]
        inputs, outputs = ({t["name"]: Port(t["dtype"], tuple(t["shape"])) for t in described[kind]} for kind in ("inputs", "outputs"))
        return Ports(inputs, outputs, tuple(State(s["in"], s["out"], tuple(s["shape"]), s["init"]) for s in described.get("states", ())))
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"io.json: engine `{engine}` is not described ({error})") from None
