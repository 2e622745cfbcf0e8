"""The commands. Everything heavy is imported inside them, so that `edgekit --help` stays instant.

Exit codes: 0 ok, 1 a bug of ours, 2 recipe or usage, 3 a gate failed, 4 the target cannot run
this, 5 a tool is missing here, 6 integrity, 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from edgekit import __version__, progress
from edgekit.errors import EdgekitError, IntegrityError, RecipeError, TargetError, ToolMissing, UsageError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

app = typer.Typer(
    name="edgekit",
    help="From a trained audio-visual model to a quantized bundle for an embedded device.",
    epilog="Exit codes: 0 ok, 2 recipe or usage, 3 gate failed, 4 target cannot run this, 5 tool missing, 6 integrity, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(help="Look after the cache.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

RecipesAndOverrides = Annotated[list[str], typer.Argument(metavar="RECIPE|KEY.PATH=VALUE", help="Recipes, and values that replace theirs, such as prune.macs=0.6.")]
OneRecipeAndOverrides = Annotated[list[str], typer.Argument(metavar="RECIPE|KEY.PATH=VALUE", help="A recipe, and values that replace its own.")]
CacheRoot = Annotated[Path, typer.Option("--cache", envvar="EDGEKIT_CACHE", help="Cache folder.", show_default=True)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]
DEFAULT_CACHE = Path(".edgekit")


def main() -> None:
    """Entry point of the `edgekit` command."""
    # Like ctrl-c: half-built things are cleaned up on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    app()


def command(owner: typer.Typer, **options: Any) -> Callable[[CommandT], CommandT]:
    """A command whose EdgekitErrors become a message and their exit code."""

    def register(function: CommandT) -> CommandT:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except EdgekitError as error:
                complain(error)
                raise typer.Exit(error.exit_code) from None
            except ModuleNotFoundError as error:
                if error.name is None or error.name.partition(".")[0] == "edgekit":
                    raise
                complain(ToolMissing(f"the package `{error.name}` is not installed here", "`edgekit doctor` says what to install"))
                raise typer.Exit(ToolMissing.exit_code) from None
            except KeyboardInterrupt:
                print("interrupted; what was finished is kept", file=sys.stderr)
                raise typer.Exit(130) from None
            except BrokenPipeError:  # `edgekit ... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None

        owner.command(**options)(guarded)
        return function

    return register


@command(app)
def build(recipes: RecipesAndOverrides, out: Annotated[Path, typer.Option("--out", help="Where bundles go.")] = Path("build"),
          device: Annotated[str | None, typer.Option("--device", metavar="ssh://USER@HOST[:PORT]", help="Finish each bundle on this device too, and adopt what it measured.")] = None,
          cache: CacheRoot = DEFAULT_CACHE, as_json: Json = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Build recipes: build/NAME/ and build/NAME.tar.zst for each; with --device build/NAME-measured too."""
    from edgekit.build import build_all

    progress.set_quiet(quiet or as_json)
    first_failure = 0
    built = []
    loaded = _load_each(*_split(recipes), cache)
    finish = _finisher(device, loaded, out) if device is not None else None
    outcomes = build_all(loaded, out)
    if finish is not None:
        outcomes = (step for outcome, recipe in zip(outcomes, loaded, strict=True) for step in finish(outcome, recipe))
    for outcome in outcomes:
        code = outcome.exit_code
        first_failure = first_failure or code
        if isinstance(outcome, EdgekitError):
            complain(outcome)
            continue
        built.append(outcome)
        _print_outcome(outcome, as_json, quiet)
    if len(built) > 1:
        _show_matrices(built, out, as_json, quiet)
    raise typer.Exit(first_failure)


def _finisher(device: str, recipes: list[Any], out: Path) -> Callable[[Any, Any], Any]:
    """`(outcome, recipe) -> outcomes`: the build's own, then what the device made of it. Refuses first what no device can finish."""
    import tempfile

    from edgekit import backends
    from edgekit import device as devices
    from edgekit.adopt import adopt
    from edgekit.target import load_target

    address = devices.Address.parse(device)
    for recipe in recipes:
        if not isinstance(recipe, EdgekitError) and not hasattr(backends.get(load_target(recipe.target, recipe.dir).backend), "finisher"):
            raise UsageError(f"--device: nothing of {recipe.target} is finished on a device", f"leave {recipe.path} out, or build it without --device")
    devices.require(address)

    def finish(outcome: Any, recipe: Any) -> Any:
        yield outcome
        if outcome.exit_code != 0:
            return
        try:
            with tempfile.TemporaryDirectory(prefix="edgekit-device-") as folder:
                result = devices.finish(outcome.bundle, devices.heldout_of(outcome.bundle), address, Path(folder))
                yield adopt(result, recipe, bundle=outcome.bundle, cache_root=recipe.cache_root, out=out)
        except EdgekitError as error:
            yield error

    return finish


def _show_matrices(built: list[Any], out: Path, as_json: bool, quiet: bool) -> None:
    """How the targets of one float model agree: printed, and in OUT/matrix/."""
    from edgekit import console, matrix

    matrices = matrix.make(built)
    if not matrices:
        return
    folder = out / "matrix"
    matrix.write(matrices, folder)
    if as_json:
        print(json.dumps({"matrices": matrices}, ensure_ascii=False), flush=True)
    elif not quiet:
        console.show_matrices(_stdout(), matrices)
        print(f"parity matrix: {folder / 'report.html'}", flush=True)


@command(app)
def plan(recipes: RecipesAndOverrides, cache: CacheRoot = DEFAULT_CACHE, as_json: Json = False) -> None:
    """Say what a build would run, and why; exit code 4 if the target cannot run the model."""
    from edgekit.cache import Cache
    from edgekit.plan import make_plan

    unfit = None
    for recipe in _load_each(*_split(recipes), cache):
        if isinstance(recipe, EdgekitError):
            raise recipe
        with Cache(cache) as opened:
            made = make_plan(recipe, opened)
        if as_json:
            print(json.dumps(made.to_json(), ensure_ascii=False))
        else:
            from edgekit import console

            console.show_plan(_stdout(), made)
        if made.problems and unfit is None:
            unfit = TargetError(f"{made.target.path}: cannot run {recipe.name}: {made.problems[0]}", "change the model, or pick another target")
    if unfit is not None:
        raise unfit


@command(app)
def why(stage: Annotated[str, typer.Argument(help="A stage, such as prune.")], recipe: OneRecipeAndOverrides,
        cache: CacheRoot = DEFAULT_CACHE, as_json: Json = False) -> None:  # fmt: skip
    """Name the input, file, key or version that made a stage stale since its last build."""
    from edgekit import plan as plans
    from edgekit import stages
    from edgekit.cache import Cache
    from edgekit.document import suggestion
    from edgekit.recipe import load_recipe

    if stage not in stages.STAGES:
        raise UsageError(f"{stage}: no such stage", suggestion(stage, list(stages.STAGES)))
    path, overrides = _one(*_split(recipe))
    with Cache(cache) as opened:
        reasons = plans.why(stage, plans.make_plan(load_recipe(path, overrides, cache), opened), opened)
    if as_json:
        print(json.dumps({"stage": stage, "stale": bool(reasons), "reasons": reasons}, ensure_ascii=False))
    else:
        print("\n".join(reasons) if reasons else f"{stage} is up to date")


@command(app)
def inspect(bundle: Annotated[Path, typer.Argument(help="A bundle: folder or .tar.zst.")], as_json: Json = False) -> None:
    """Check every hash of a bundle and show what is in it."""
    from edgekit import console
    from edgekit.bundle import open_bundle

    with open_bundle(bundle) as opened:
        opened.verify()
        manifest, report = opened.manifest, opened.report
        if as_json:
            print(json.dumps({"bundle": str(bundle), "verified": True, "manifest": manifest, "report": report}, ensure_ascii=False))
        else:
            console.show_bundle(_stdout(), bundle, manifest, report)


@command(app)
def compare(a: Annotated[str, typer.Argument(metavar="A", help="The reference: ONNX, OpenVINO IR, .tflite, a recipe, a bundle, or recorded outputs.")],
            b: Annotated[list[str], typer.Argument(metavar="B...", help="What is judged against it; several, or a folder of bundles, make a table. `@WORD` behind any picks a part, such as recipe.yaml@pruned.")],
            data: Annotated[str | None, typer.Option("--data", help="Folder or file of inputs, recipe (its test split), data set of calibration/, or random:N.")] = None,
            atol: Annotated[list[str] | None, typer.Option("--atol", metavar="[OUT:]TOL", help="Absolute tolerance; either this or --rtol must hold.")] = None,
            rtol: Annotated[list[str] | None, typer.Option("--rtol", metavar="[OUT:]TOL", help="Relative tolerance, of |B|.")] = None,
            stat: Annotated[list[str] | None, typer.Option("--check-error-stat", metavar="[OUT:]STAT", help="What must be within: elemwise, max, mean, median or quantile.")] = None,
            quantile: Annotated[float, typer.Option("--error-quantile", min=0, max=1, help="For --check-error-stat quantile.")] = 0.99,
            min_sqnr: Annotated[list[str] | None, typer.Option("--min-sqnr", metavar="[OUT:]DB", help="SQNR over all samples, in dB.")] = None,
            min_cosine: Annotated[list[str] | None, typer.Option("--min-cosine", metavar="[OUT:]COS", help="Cosine over all samples.")] = None,
            infinities: Annotated[bool, typer.Option("--infinities-compare-equal", help="The same infinity on both sides is no error.")] = False,
            mapping: Annotated[Path | None, typer.Option("--map", help="YAML, B's names to A's: `theirs: ours`.")] = None,
            outputs: Annotated[list[str] | None, typer.Option("--outputs", help="Compare this output of A only; may be repeated.")] = None,
            samples: Annotated[int | None, typer.Option("--samples", min=1, help="The first so many only.")] = None,
            seed: Annotated[int, typer.Option("--seed", min=0, help="Of random data.")] = 0,
            val_range: Annotated[list[str] | None, typer.Option("--val-range", metavar="[IN:]LOW,HIGH", help="Of random data, -1,1 by default.")] = None,
            shapes: Annotated[list[str] | None, typer.Option("--input-shape", metavar="IN:N,N,...", help="Of random data where the model leaves an axis free.")] = None,
            stream: Annotated[bool, typer.Option("--stream", help="Samples are streams: states are carried from call to call.")] = False,
            stream_axis: Annotated[int | None, typer.Option("--stream-axis", min=0, help="The inputs' time axis; by default a call takes one step and has none.")] = None,
            steps: Annotated[int | None, typer.Option("--steps", min=1, help="Length of random streams, 64 by default.")] = None,
            chunk_a: Annotated[int | None, typer.Option("--chunk-a", min=1, help="Steps per call of A, where it leaves that free.")] = None,
            chunk_b: Annotated[int | None, typer.Option("--chunk-b", min=1, help="Steps per call of B, where it leaves that free.")] = None,
            rate_hz: Annotated[float | None, typer.Option("--rate-hz", help="Steps a second, for the time axis.")] = None,
            state: Annotated[list[str] | None, typer.Option("--state", metavar="IN:OUT", help="A state of a single graph; by default every x_in with its x_out.")] = None,
            threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of both sides.")] = None,
            conditions: Annotated[str | None, typer.Option("--conditions", metavar="all|masking|NAME,...", help="Run on harder data too: no-audio, no-video, blur, noise-10, noise-0; `masking` for 10 to 90 % of one modality random.")] = None,
            save: Annotated[Path | None, typer.Option("--save-outputs", help="Write every sample's outputs to FOLDER/a and FOLDER/b, which compare reads again.")] = None,
            junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML.")] = None,
            bisect: Annotated[bool, typer.Option("--bisect", help="Rank the layers by the error that each introduces by itself.")] = False,
            nodes: Annotated[list[str] | None, typer.Option("--nodes", metavar="NAME|GLOB", help="Rank these layers only; may be repeated.")] = None,
            repro: Annotated[Path | None, typer.Option("--save-repro", help="Bisect, and leave the first layer's part of B in this new folder, with its inputs and A's output.")] = None,
            html: Annotated[Path | None, typer.Option("--html", help="Write a report, one self-contained page.")] = None,
            keep: Annotated[int, typer.Option("--keep", min=0, help="Samples shown in the report, with their waveforms, frames and traces.")] = 3,
            cache: CacheRoot = DEFAULT_CACHE, as_json: Json = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Say whether two models give the same, where they differ and by how much; exit code 3 if they do."""
    from edgekit.parity import arguments, show
    from edgekit.parity import conditions as table

    progress.set_quiet(quiet or as_json)
    sides = [side for text in b for side in table.sides_of(text)]
    if len(sides) > 1 and save is not None:
        raise UsageError("--save-outputs takes one B", f"there are {len(sides)}: {', '.join(sides)}")
    if len(sides) > 1 and (bisect or repro or nodes):
        raise UsageError("--bisect takes one B", f"there are {len(sides)}: {', '.join(sides)}")
    every = table.compare_all(
        a, sides, data, () if conditions is None else table.chosen(conditions),
        atol=arguments.numbers(atol, "--atol"), rtol=arguments.numbers(rtol, "--rtol"), check_error_stat=arguments.stats(stat), quantile=quantile,
        min_sqnr_db=arguments.numbers(min_sqnr, "--min-sqnr"), min_cosine=arguments.numbers(min_cosine, "--min-cosine"), infinities_compare_equal=infinities,
        mapping=mapping, outputs=outputs or (), samples=samples, seed=seed, val_range=arguments.ranges(val_range), input_shapes=arguments.shapes(shapes),
        stream=stream, stream_axis=stream_axis, steps=steps, chunk_a=chunk_a, chunk_b=chunk_b, rate_hz=rate_hz, states=arguments.states(state), threads=threads, cache=cache,
        keep=0 if html is None or len(sides) > 1 else keep, on_sample=None if save is None else show.writer(save),
    )  # fmt: skip
    if bisect or repro or nodes:
        from edgekit.parity.bisect import with_layers

        every = with_layers(
            every, a, sides[0], data, nodes=nodes, repro=repro, mapping=mapping, samples=samples, seed=seed, val_range=arguments.ranges(val_range),
            input_shapes=arguments.shapes(shapes), stream=stream, stream_axis=stream_axis, steps=steps, states=arguments.states(state), threads=threads, cache=cache,
        )  # fmt: skip
    found: Any = every.comparisons[0] if len(sides) == 1 else every
    if junit is not None:
        show.write_junit(every.comparisons, junit)
    if html is not None:
        import shlex

        from edgekit.parity import html as pages

        pages.write(found, html, shlex.join(["edgekit", *sys.argv[1:]]))
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False))
    elif quiet:
        print("\n".join(one.verdict if one else f"{one.verdict}: {one.reasons[0]}" for one in every.comparisons))
    else:
        show.show_all(_stdout(), every)
    raise typer.Exit(every.exit_code)


@command(app, name="verify")
def verify_bundle(bundle: Annotated[str, typer.Argument(help="A bundle: folder or .tar.zst.")],
                  threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of the engines.")] = None, as_json: Json = False) -> None:  # fmt: skip
    """Check one bundle: every hash, then its golden clips through its engines; exit code 3 if an answer is off."""
    from edgekit.parity import golden
    from edgekit.parity.runners import Options

    found = golden.verify(bundle, Options(threads))
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False))
    else:
        where = "the artifact, here" if found.measured_on == "host" else "simulated, the artifact does not run here"
        print("\n".join([f"{bundle}: {found.files} files, every sha256 matches", *found.failures(), f"{sum(c.is_ok for c in found.checks)} of {len(found.checks)} golden checks hold ({where})"]))
    raise typer.Exit(found.exit_code)


@command(app)
def adopt(result: Annotated[Path, typer.Argument(help="The folder `result` that finish.sh left on a device.")],
          recipe: Annotated[list[str] | None, typer.Argument(metavar="[RECIPE|KEY.PATH=VALUE]", help="What the bundle was built from; by default as its last build here.")] = None,
          bundle: Annotated[Path | None, typer.Option("--bundle", help="The bundle that finish.sh ran in; by default around RESULT, or OUT/NAME.")] = None,
          out: Annotated[Path, typer.Option("--out", help="Where bundles are and go.")] = Path("build"),
          cache: CacheRoot = DEFAULT_CACHE, as_json: Json = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Check what a device brought back and make a new bundle of it: build/NAME-measured/, with the engines and what was measured."""
    from edgekit.adopt import adopt as adopt_result

    progress.set_quiet(quiet or as_json)
    paths, overrides = _split(recipe, is_required=False) if recipe else ([], [])
    if len(paths) > 1:
        raise UsageError(f"one recipe expected, got {len(paths)}: {', '.join(paths)}", "overrides are written key.path=value")
    outcome = adopt_result(result, paths[0] if paths else None, overrides, bundle, cache, out)
    _print_outcome(outcome, as_json, quiet)
    raise typer.Exit(outcome.exit_code)


@command(app)
def doctor(install: Annotated[list[str] | None, typer.Option("--install", metavar="TOOL", help="Install a tool that lives beside edgekit's environment.")] = None,
           cache: CacheRoot = DEFAULT_CACHE, as_json: Json = False) -> None:  # fmt: skip
    """Tell versions, disk and missing tools, and what to install."""
    from dataclasses import asdict

    from edgekit import console
    from edgekit import doctor as doctors

    if install:
        for name in install:
            print(doctors.install(name), flush=True)
        return
    findings = doctors.examine(cache)
    if as_json:
        for finding in findings:
            print(json.dumps(asdict(finding)))
    else:
        rows = [("ok" if f.ok else "MISSING" if f.required else "-", f.name, f.found, f.needed, f.hint) for f in findings]
        console.show_rows(_stdout(), ("", "what", "found", "needed", "to do"), rows)
        if all(finding.ok for finding in findings if finding.required):
            print("everything that is required is here")
    missing = [finding.name for finding in findings if finding.required and not finding.ok]
    if missing:
        raise ToolMissing(f"missing here: {', '.join(missing)}", "install them as the last column says")


@command(app)
def train(recipe: Annotated[list[str], typer.Argument(metavar="TRAINING|KEY.PATH=VALUE", help="A training recipe, and values that replace its own.")],
          cache: CacheRoot = DEFAULT_CACHE, quiet: Quiet = False) -> None:  # fmt: skip
    """Train a model from scratch; goes on where a killed run stopped."""
    from edgekit.training import train_from_file

    progress.set_quiet(quiet)
    path, overrides = _one(*_split(recipe))
    trained = train_from_file(path, overrides, cache)
    if trained is not None:
        print(trained)


@command(app)
def bench(recipe: OneRecipeAndOverrides, threads: Annotated[int, typer.Option(help="CPU threads of everything measured.", min=1)] = 2,
          runs: Annotated[int, typer.Option(help="Interleaved runs; the median counts.", min=1)] = 7,
          random_weights: Annotated[bool, typer.Option("--random-weights", help="Seeded random weights instead of the checkpoint: speed only.")] = False,
          cache: CacheRoot = DEFAULT_CACHE, as_json: Json = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Time a recipe's artifact on this machine against torch, ONNX Runtime and its runtime's own float and INT8.

    Of the native engine, on 1 to THREADS threads, against every framework's graphs; the recipe has to be built.
    """
    from edgekit import console
    from edgekit.bench import denoise, denoise_page, latency
    from edgekit.recipe import load_recipe

    progress.set_quiet(quiet or as_json)
    path, overrides = _one(*_split(recipe))
    loaded = load_recipe(path, overrides, cache)
    if denoise.serves(loaded):
        if random_weights:
            raise UsageError("--random-weights: INT8 of the native engine is measured on the weight file that the build made", "leave it out")
        result = denoise.run(loaded, range(1, threads + 1), runs, out=Path("build/bench"))
        print("\n".join(map(json.dumps, result["rows"])) if as_json else denoise_page.tables(result))
        return
    if random_weights:
        checkpoint = latency.random_checkpoint(loaded.load.model, loaded.load.config, cache / "bench").absolute()
        loaded = load_recipe(path, [*overrides, f"load.checkpoint={checkpoint}"], cache)
    rows = latency.run(loaded, threads, runs)
    if as_json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        console.show_bench(_stdout(), rows)


@command(app)
def systems(reports: Annotated[list[Path], typer.Argument(metavar="BUNDLE|report.json...", help="What was built: folders in build/, or their reports.")],
            markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
            into: Annotated[Path | None, typer.Option("--into", help="Put the tables into this page, between its marks.")] = None, as_json: Json = False) -> None:  # fmt: skip
    """Show what was measured of many builds in one table for each task."""
    from edgekit import console
    from edgekit import systems as tables

    groups = tables.grouped(tables.read(reports))
    if into is not None:
        tables.embed(groups, into)
    if as_json:
        for row in (row for group in groups for row in tables.to_json(group)):
            print(json.dumps(row, ensure_ascii=False))
    elif markdown:
        print(tables.markdown(groups), end="")
    else:
        console.show_systems(_stdout(), groups)


@command(app)
def new(path: Annotated[Path, typer.Argument(help="The recipe to write, such as my_car.yaml.")],
        target: Annotated[str, typer.Option(help="A device, a file in targets/.")] = "jetson_xavier") -> None:  # fmt: skip
    """Write a commented recipe that builds as it is."""
    from edgekit.new import write_recipe

    try:
        written = write_recipe(path, target)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({str(error.strerror).lower()})", "write to a folder that is yours") from None
    print("\n".join(f"wrote {file}" for file in written))


@command(app)
def schema() -> None:
    """Print the JSON Schema of a recipe, which editors complete from."""
    from edgekit.recipe import json_schema

    print(json_schema(), end="")


@command(cache_app)
def ls(cache: CacheRoot = DEFAULT_CACHE, as_json: Json = False) -> None:
    """List entries, least recently used first."""
    from datetime import datetime

    from edgekit import console
    from edgekit.cache import Cache

    with Cache(cache) as opened:
        rows = opened.listing()
        total = opened.size()
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    shown = [(r["stage"], r["key"].partition("-")[2][:12], console.megabytes(r["bytes"]), f"{datetime.fromtimestamp(r['used_at']):%Y-%m-%d %H:%M}", ", ".join(r["recipes"])) for r in rows]
    console.show_rows(_stdout(), ("stage", "key", "size", "used", "last build of"), shown)
    print(f"{len(rows)} entries, {console.megabytes(total)} in {cache}")


@command(cache_app)
def gc(keep: Annotated[str, typer.Option(help="How much may stay, such as 20GB.")], cache: CacheRoot = DEFAULT_CACHE) -> None:
    """Delete what was not used for longest; never what is in use."""
    from edgekit import console
    from edgekit.cache import Cache

    with Cache(cache) as opened:
        removed, freed = opened.gc(parse_size(keep))
        left = opened.size()
    what = f"removed {len(removed)} of the oldest, freed {console.megabytes(freed)}" if removed or freed else "nothing to remove"
    print(f"{what}; {console.megabytes(left)} in {cache}")


@command(cache_app)
def verify(cache: CacheRoot = DEFAULT_CACHE) -> None:
    """Read every file; what is damaged is deleted, so that it is built again."""
    from edgekit.cache import Cache

    with Cache(cache) as opened:
        count = len(opened.entries())
        damaged = opened.verify()
    if damaged:
        raise IntegrityError("; ".join(damaged), "they were deleted and will be built again; check the disk if you did not change them")
    print(f"{count} entries, every sha256 matches")


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit(0)


def parse_size(text: str) -> int:
    """`20GB`, `500 MB`, `1GiB` or plain bytes."""
    import re

    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in units:
        raise UsageError(f"--keep: `{text}` is not a size", "such as 20GB or 500MB")
    return int(float(match[1]) * units[match[2]])


def complain(error: EdgekitError) -> None:
    """An error on stderr: where and what, then the hint."""
    print(error, file=sys.stderr, flush=True)


def _load_each(paths: list[str], overrides: list[str], cache: Path) -> list[Any]:
    """Recipes, or what is wrong with them; two of one name would overwrite each other."""
    from edgekit.recipe import load_recipe

    loaded: list[Any] = []
    first: dict[str, str] = {}
    for path in paths:
        try:
            recipe = load_recipe(path, overrides, cache)
            if recipe.name == "matrix":
                raise RecipeError(f"{recipe.where('name')}: `name` cannot be `matrix`", "build/matrix/ holds the parity matrix of several recipes")
            if recipe.name in first:
                raise RecipeError(f"{recipe.where('name')}: `name` is `{recipe.name}`, as in {first[recipe.name]}", "give each recipe a name of its own")
            first[recipe.name] = path
            loaded.append(recipe)
        except EdgekitError as error:
            loaded.append(error)
    return loaded


def _split(arguments: list[str], is_required: bool = True) -> tuple[list[str], list[str]]:
    """(recipes, overrides): what has a `=` and is no file is an override."""
    overrides = [text for text in arguments if "=" in text and not Path(text).exists()]
    paths = [text for text in arguments if text not in overrides]
    if not paths and is_required:
        raise UsageError("no recipe given", "for example `edgekit build recipes/mhlt_xavier.yaml`")
    return paths, overrides


def _one(paths: list[str], overrides: list[str]) -> tuple[Path, list[str]]:
    if len(paths) > 1:
        raise UsageError(f"one recipe expected, got {len(paths)}: {', '.join(paths)}", "overrides are written key.path=value")
    return Path(paths[0]), overrides


def _print_outcome(outcome: Any, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps({"recipe": outcome.name, **outcome.report}, ensure_ascii=False), flush=True)
    else:
        _show_result(outcome, quiet)


def _show_result(result: Any, quiet: bool) -> None:
    from edgekit import console

    if quiet or not sys.stdout.isatty():
        print(console.line(result), flush=True)
    else:
        console.show_result(_stdout(), result)


def _stdout() -> Any:
    """Rich on stdout; wide and without colours when it is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)


if __name__ == "__main__":
    main()
