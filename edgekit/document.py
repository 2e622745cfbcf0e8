"""YAML files with a schema: recipes, targets, calibration sets.

Every error names `file:line`, so the text is composed to nodes first (nodes know their
lines), turned into plain data, and only then validated. Only YAML 1.2's core types exist:
`on`, `010` and `12:30` stay text, and `1e-3` is a number, unlike in PyYAML's YAML 1.1.
Anchors, aliases, tags and deep nesting are refused: recipes need none, bombs need all.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from edgekit.errors import RecipeError, UsageError

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 24
COMMAND_LINE = "command line"

Place = tuple[str, int]  # (file, line from 1); line 0 means a whole file or the command line
Location = tuple[str | int, ...]


Text = Annotated[str, Field(min_length=1)]
"""A text that is not empty, for fields of a schema."""


class Schema(BaseModel):
    """Base of every schema: unknown keys and loose types are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


SchemaT = TypeVar("SchemaT", bound=Schema)


class Document(typing.NamedTuple):
    """Plain data and where each part of it was written."""

    path: str
    data: dict[str, Any]
    places: dict[Location, Place]

    def where(self, dotted: str = "") -> str:
        """`file:line` of a key such as `load.checkpoint`, or of its nearest parent that is written."""
        file, line = self.place(tuple(dotted.split(".")) if dotted else ())
        return f"{file}:{line}" if line else file

    def place(self, location: Location) -> Place:
        """(file, line) of a key, or of its nearest parent that is written."""
        while location and location not in self.places:
            location = location[:-1]
        return self.places.get(location, (self.path, 0))


def read(path: Path, overrides: Iterable[str] = ()) -> Document:
    """Read a YAML mapping and apply `key.path=value` overrides.

    Raises:
        RecipeError: the file is missing, not UTF-8, too large, not YAML, or not plain data.
        UsageError: an override is not `key.path=value`.
    """
    name = str(path)
    node = _compose(_read_text(path), name)
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{name}: expected keys and values, got {_kind_of(node)}", "start from `edgekit new`")
    places: dict[Location, Place] = {}
    data = _plain(node, (), places, name)
    for override in overrides:
        _override(data, places, override)
    return Document(name, data, places)


def load(path: Path, schema: type[SchemaT], overrides: Iterable[str] = ()) -> SchemaT:
    """Read `path` and validate it.

    Raises:
        RecipeError: with file:line of the first mistake.
    """
    return validate(read(path, overrides), schema)


def validate(document: Document, schema: type[SchemaT]) -> SchemaT:
    """Check plain data against a schema.

    Raises:
        RecipeError: `file:line: what, value seen`, unknown keys first since they explain missing ones.
    """
    try:
        # JSON mode: strict about types, and still takes a YAML list where the schema has a tuple.
        return schema.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        found = [_explain(document, schema, detail) for detail in error.errors(include_url=False)]
    _, _, message, hint = min(found, key=lambda entry: entry[:2])
    more = "" if len(found) == 1 else f"{len(found) - 1} more mistake{'s' if len(found) > 2 else ''} after this one"
    raise RecipeError(message, "; ".join(filter(None, (hint, more))) or None)


def mistake(message: str, hint: str | None = None, at: Location = ()) -> PydanticCustomError:
    """What a schema's own validator raises: the message, and the key below it that is wrong."""
    return PydanticCustomError("mistake", "{message}", {"message": message, "hint": hint, "at": list(at)})


def find(folder: str, name: str, beside: Path) -> Path:
    """The file `folder/name.yaml` beside a recipe's folder, then upward, then edgekit's own copy.

    Args:
        folder: `targets` or `calibration`.
        name: bare name, such as `jetson_xavier`.
        beside: the folder of the recipe.

    Raises:
        RecipeError: no such file anywhere; the hint names the closest one.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise RecipeError(f"`{name}` is not a name in `{folder}/`", f"give the name of a file in `{folder}/`, without path or .yaml")
    folders = [parent / folder for parent in (beside, *_above(beside))]
    if (own := shipped(folder)) is not None:
        folders.append(own)
    for candidate in folders:
        if (candidate / f"{name}.yaml").is_file():
            return candidate / f"{name}.yaml"
    names = sorted({file.stem for candidate in folders for file in candidate.glob("*.yaml")})
    raise RecipeError(f"there is no `{folder}/{name}.yaml`", suggestion(name, names))


def shipped(folder: str) -> Path | None:
    """edgekit's own copy of a data folder: inside the wheel, or in the checkout it runs from."""
    package = Path(__file__).parent
    for candidate in (package / "_data" / folder, package.parent / folder):
        if candidate.is_dir() and (candidate.parent.name == "_data" or (package.parent / "pyproject.toml").is_file()):
            return candidate
    return None


def suggestion(name: str, known: Sequence[str]) -> str | None:
    """`did you mean ...?`, or the list of what is known, or None if nothing is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known: {', '.join(f'`{k}`' for k in known)}" if known else None


def _above(folder: Path) -> Iterable[Path]:
    """Parents, spelled as briefly as the caller spelled the folder."""
    absolute = folder.absolute()
    here = Path.cwd()
    for parent in absolute.parents:
        try:
            yield parent.relative_to(here)
        except ValueError:
            yield parent


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path}: {path.stat().st_size} bytes, at most {_MAX_BYTES} are read", "is this a recipe?")
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        near = sorted(str(file) for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = suggestion(str(path), near) if near else "`edgekit new my_recipe.yaml` writes one"
        raise RecipeError(f"{path}: no such file", hint) from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: a folder, expected a YAML file") from None
    except PermissionError:
        raise RecipeError(f"{path}: no permission to read it") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from None


class _CoreLoader(yaml.SafeLoader):
    """PyYAML with the types of YAML 1.2's core schema."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+0123456789.")),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)

_SCALARS = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
    "tag:yaml.org,2002:str": str,
}


def _compose(text: str, name: str) -> yaml.Node | None:
    """Nodes of the one document in `text`, after looking for bombs without building anything."""
    depth = documents = 0
    try:
        for event in yaml.parse(text, Loader=_CoreLoader):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise RecipeError(f"{name}:{line}: anchors and aliases are not supported, `{event.anchor}` seen", "write the value out")
            if getattr(event, "tag", None):
                raise RecipeError(f"{name}:{line}: tags are not supported, `{event.tag}` seen", "write plain values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise RecipeError(f"{name}:{line}: nested deeper than {_MAX_DEPTH}", "a recipe has three levels")
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise RecipeError(f"{name}:{line}: a second document starts here", "keep one recipe per file")
        return yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError(f"{place}: not valid YAML, {error.problem or error.context}", "check the indentation and the quotes") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML, {str(error).splitlines()[0]}", "save the file as plain UTF-8 text") from None


def _plain(node: yaml.Node, location: Location, places: dict[Location, Place], name: str) -> Any:
    line = node.start_mark.line + 1
    places.setdefault(location, (name, line))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*location, i), places, name) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > 64 and node.tag == "tag:yaml.org,2002:int":
            raise RecipeError(f"{name}:{line}: a number of {len(node.value)} digits")
        return _SCALARS[node.tag](node.value)
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key_line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            raise RecipeError(f"{name}:{key_line}: a key must be a word, got {_kind_of(key_node)}", "quote it if it is one")
        key = key_node.value
        if key in data:
            first = places[(*location, key)][1]
            raise RecipeError(f"{name}:{key_line}: `{_dotted((*location, key))}` is given twice", f"it already stands in line {first}")
        places[(*location, key)] = (name, key_line)
        data[key] = _plain(value_node, (*location, key), places, name)
    return data


def _override(data: dict[str, Any], places: dict[Location, Place], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"{COMMAND_LINE}: `{override}` is not key.path=value", "for example `prune.macs=0.6`")
    source = f"{COMMAND_LINE} `{override}`"
    node = _compose(text, source)
    location = tuple(keys)
    for stale in [known for known in places if known[: len(location)] == location]:
        del places[stale]
    parent = data
    for depth, key in enumerate(keys[:-1], start=1):
        if not isinstance(parent.get(key), dict):
            parent[key] = {}
        places.setdefault(location[:depth], (source, 0))
        parent = parent[key]
    found: dict[Location, Place] = {}
    parent[keys[-1]] = None if node is None else _plain(node, location, found, source)
    places.update({known: (source, 0) for known in found} or {location: (source, 0)})


def _explain(document: Document, schema: type[Schema], detail: ErrorDetails) -> tuple[int, int, str, str | None]:
    """(rank, line, message, hint) of one pydantic error; lower ranks explain higher ones."""
    location: Location = tuple(detail["loc"])
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    location += tuple(context.get("at", ()))
    key = _dotted(location)
    file, line = document.place(location)
    where = f"{file}:{line}" if line else file

    if kind == "extra_forbidden":
        known = _keys_at(schema, location[:-1])
        return 0, line, f"{where}: unknown key `{_dotted(location[-1:])}`", suggestion(str(location[-1]), known)
    if kind == "missing":
        return 2, line, f"{where}: `{key}` is missing", None
    seen = _shown(value)
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context["expected"]))
        return 1, line, f"{where}: `{key}` cannot be {seen}", suggestion(str(value), known) if isinstance(value, str) else _one_of(known)
    if kind in _EXPECTED:
        return 1, line, f"{where}: `{key}` must be {_EXPECTED[kind]}, got {seen}", _type_hint(kind, value)
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return 1, line, f"{where}: `{key}` must be {words} {context[name]}, got {seen}", None
    if kind == "mistake":
        return 1, line, f"{where}: {context['message']}", context["hint"]
    return 1, line, f"{where}: `{key}`: {detail['msg'].lower()}, got {seen}", None


_EXPECTED = {
    "string_type": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "string_too_short": ("text of length at least", "min_length"),
    "too_short": ("of length at least", "min_length"),
    "too_long": ("of length at most", "max_length"),
    "string_pattern_mismatch": ("text like", "pattern"),
}


def _type_hint(kind: str, value: Any) -> str | None:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes if it is text"
    if kind in ("float_type", "int_type") and isinstance(value, str) and re.fullmatch(r"[-+.0-9eE]+", value):
        return "remove the quotes"
    return None


def _one_of(known: Sequence[str]) -> str:
    return f"known: {', '.join(f'`{k}`' for k in known)}"


def _keys_at(schema: Any, location: Location) -> list[str]:
    """The keys that the schema knows at `location`, for suggestions."""
    current = schema
    for part in location:
        current = _without_none(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            if field is None:
                return []
            current = field.annotation
        else:  # dict[str, X], list[X] or tuple[X, ...]
            arguments = typing.get_args(current)
            if not arguments:
                return []
            current = arguments[1] if typing.get_origin(current) is dict else arguments[0]
    current = _without_none(current)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return annotation


def _dotted(location: Location) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"`{value if len(value) <= 60 else value[:57] + '...'}`"
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return json.dumps(value)


def _kind_of(node: yaml.Node | None) -> str:
    if node is None:
        return "an empty file"
    return {"mapping": "keys and values", "sequence": "a list"}.get(node.id, f"`{node.value}`")
