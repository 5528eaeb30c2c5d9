"""Reading a run config: YAML, overrides, built-in configs by name, and mistakes told by key.

A config file names only what it changes; ``section.key=value`` on the command line changes one more
key. A mistake is told with what is allowed and the nearest spelling. The resolved config is saved with
the run and can be run again.
"""

from __future__ import annotations

import difflib
import importlib.resources
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import UserError
from .schema import RunConfig

Schema = TypeVar("Schema", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the 1.2 core rules for scalars (``off`` is a word, ``1e-4`` a number) and an
    error for a key given twice, which plain YAML silently overrides."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not a word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


# PyYAML's own constructors keep YAML 1.1's octal and sexagesimal numbers: 010 would be 8.
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text.

    Raises:
        UserError: not YAML, a key twice, or a tag that asks for more than plain data.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # The last ones: PyYAML's own constructors on a tag whose text does not fit, e.g. !!bool maybe.
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        unfit = isinstance(error, (LookupError, AttributeError))
        problem = "a value does not fit its !!tag" if unfit else str(error).splitlines()[0]
        problem = getattr(error, "problem", None) or problem
        raise UserError(
            f"{where}{line}: not a valid config: {problem}", "check the indentation and colons"
        ) from None


def builtin_names() -> list[str]:
    """Names of the built-in configs, e.g. ``cyclical`` and ``reports/pose-floor``."""
    root = _builtin_root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def _builtin_root() -> Path:
    """``configs/``: inside the package in a wheel, beside it in a checkout (one copy of the files)."""
    package = Path(str(importlib.resources.files("cvaecli")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find(name: str) -> Path:
    """The file of ``--config NAME``: a path, or the name of a built-in config with or without ``.yaml``.

    Raises:
        UserError: neither; names the nearest built-in.
    """
    if os.path.isfile(name):  # noqa: PTH113  (Path.is_file raises on a name that is too long)
        return Path(name)
    stem = re.sub(r"\.ya?ml$", "", name)
    if stem in builtin_names():
        return _builtin_root() / f"{stem}.yaml"
    raise UserError(
        f"{name}: no such config file, nor a built-in config of that name", _nearest(stem, builtin_names())
    )


def load(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a file or built-in name, with ``section.key=value`` overrides applied in order.

    Raises:
        UserError: names the key or file, what is wrong, and what is allowed.
    """
    path = find(str(name))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "give a UTF-8 text file") from None
    raw = parse_yaml(text, str(path))
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold sections (data:, model:, train:, ...), not {type(raw).__name__}")
    return from_dict(raw, overrides, where=str(path))


def from_dict(raw: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "config") -> RunConfig:
    """A validated config from plain data; see ``load``."""
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()
    }
    # model.name first: it drops the other model's keys, and must not drop overrides of the new one.
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].strip() != "model.name"):
        _apply(merged, override)
    for section in RunConfig.model_fields.keys() - {"seed"}:
        if merged.get(section, ...) is None:  # a section whose keys are all commented out
            del merged[section]
    try:
        return _validate(RunConfig, _with_model(merged))
    except UserError as error:
        raise UserError(f"{where}: {error.message}", error.hint) from None


def _with_model(raw: dict[str, Any]) -> dict[str, Any]:
    """``model`` by the schema of the model it names, ``teacher_forcing`` as that model needs it."""
    from .. import models  # imports torch: only when a config is really loaded

    section = raw.get("model")
    section = {} if section is None else section
    if not isinstance(section, dict):
        raise UserError(f"model: must be a section with a name, not {section!r}", "e.g. model: {name: pose}")
    name = section.get("name", "pose")
    if name not in models.names():
        raise UserError(f"model.name: {name!r} is not a model", _nearest(str(name), models.names()))
    model = models.load(name)
    forcing = raw.get("teacher_forcing")
    if model.parallel and forcing is not None:
        raise UserError(
            f"teacher_forcing: means nothing for model {name}, whose predictions do not depend on each other",
            "remove the section, or add teacher_forcing=null",
        )
    if not model.parallel and forcing is None:
        forcing = {}
    parsed = _validate(model.Config, {**section, "name": name}, "model.")
    return {**raw, "model": parsed, "teacher_forcing": forcing}


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{override}: not an override", "write section.key=value, e.g. train.epochs=10")
    value = _override_value(text.strip(), override)
    target = raw
    for part in parts[:-1]:
        inner = target.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise UserError(f"{key}: {part} is a value, not a section")
        target[part] = dict(inner or {})
        target = target[part]
    if parts == ["model", "name"] and value != raw["model"].get("name", "pose"):
        target.clear()  # the other keys belong to the model that is replaced
    target[parts[-1]] = value


def _override_value(text: str, override: str) -> Any:
    """One value in YAML's words. Only what opens as a list, a section or in quotes is read as YAML: in a
    folder named ``set #2`` the rest is no comment, and in ``a: b`` the colon makes no key."""
    if text.startswith(tuple("[{'\"!")):
        return parse_yaml(text, override)
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:  # more digits than Python reads
        raise UserError(f"{override[:80]}...: not a valid value") from None


def _validate(schema: type[Schema], raw: Any, prefix: str = "") -> Schema:
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        faults = [_explain(schema, fault, prefix) for fault in error.errors()]
        more = (
            f" (and {len(faults) - 1} more: {'; '.join(f[0] for f in faults[1:4])})"
            if len(faults) > 1
            else ""
        )
        raise UserError(faults[0][0] + more, faults[0][1]) from None


def _explain(schema: type[BaseModel], fault: Any, prefix: str) -> tuple[str, str]:
    """(message, hint) for one pydantic error."""
    path = [str(part) for part in fault["loc"]]
    key = prefix + ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _keys(schema, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        stem = key[: len(key) - len(path[-1])]
        if near:
            return f"{key}: unknown key; did you mean {stem}{near[0]}?", ""
        return f"{key}: unknown key", f"known here: {', '.join(known)}"
    if fault["type"] == "value_error":
        text = str(fault["ctx"]["error"])
        return (f"{key}.{text}" if key else text), ""
    text = fault["msg"][0].lower() + fault["msg"][1:]
    if fault["type"] == "model_type":
        text = f"this is a section with keys of its own: {', '.join(_keys(schema, path))}"
    if fault["type"] == "literal_error":
        options = re.findall(r"'([^']+)'", fault["ctx"]["expected"])
        return f"{key}: {fault['input']!r} is not allowed; {text}", _nearest(
            str(fault["input"]), options, listed=False
        )
    return f"{key}: {fault['input']!r} is not allowed; {text}", ""


def _keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that the section at ``path`` knows."""
    for part in path:
        field = schema.model_fields.get(part)
        inner = field.annotation if field else None
        options = get_args(inner) if get_origin(inner) in (Union, UnionType) else (inner,)
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not nested:
            return []
        schema = nested[0]
    return sorted(schema.model_fields)


def _nearest(word: str, options: Sequence[str], listed: bool = True) -> str:
    near = difflib.get_close_matches(word, options, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are: {', '.join(options)}" if listed else ""
