"""Read a run config from a YAML file or a built-in config, with overrides.

A config file names only the keys that differ from the defaults, or from the config that it extends
(``extends: cyclical``). An override ``section.key=value`` changes one more key. An error message names the
key, what is allowed, and the nearest spelling. The resolved config, with every key, is saved in the run
folder and can be run again.
"""

from __future__ import annotations

import difflib
import importlib.resources
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ..errors import UserError
from .schema import RunConfig
from .yaml_text import MAX_CHARACTERS, parse_scalar
from .yaml_text import parse_yaml as parse_yaml  # part of this module's interface too

Schema = TypeVar("Schema", bound=BaseModel)


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
    """The file that ``--config NAME`` means: a path, or a built-in config with or without ``.yaml``.

    Raises:
        UserError: there is no such config; the hint names the nearest built-in one.
    """
    if os.path.isfile(name):  # noqa: PTH113  (Path.is_file raises on a name that is too long)
        return Path(name)
    stem = re.sub(r"\.ya?ml$", "", name)
    if stem in builtin_names():
        return _builtin_root() / f"{stem}.yaml"
    raise UserError(f"{name}: no such config file, and no built-in config of that name", _near_builtin(stem))


def _near_builtin(name: str) -> str:
    """A hint: the built-in config with the nearest name; folders are ignored."""
    by_last_part = {builtin.rpartition("/")[2]: builtin for builtin in builtin_names()}
    near = difflib.get_close_matches(name.rpartition("/")[2], by_last_part, n=1)
    return f"did you mean {by_last_part[near[0]]}?" if near else f"there are: {', '.join(builtin_names())}"


def load(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a file or of a built-in name, with ``section.key=value`` overrides applied in order.

    Raises:
        UserError: names the key or file, what is wrong, and what is allowed.
    """
    raw, where = sections(name)
    return from_dict(raw, overrides, where)


def sections(name: str | Path) -> tuple[dict[str, Any], str]:
    """A config as plain data, before overrides and validation.

    Returns:
        The sections of the file, merged into those of the config that it extends, if any; and the names of
        these files, for the ``where`` of ``from_dict``.

    Raises:
        UserError: see ``load``.
    """
    path = find(str(name))
    files: list[Path] = [path]
    changes: list[dict[str, Any]] = []
    while "extends" in (raw := _read(files[-1])):
        base = _extended_file(files[-1], raw.pop("extends"))
        changes.append(raw)
        if any(base.samefile(file) for file in files):
            names = " -> ".join(file.name for file in [*files, base])
            raise UserError(f"{path}: extends: circular: {names}", "one of them must not extend another")
        files.append(base)
    for change in reversed(changes):
        raw = _merged(raw, change)
    extended = ", ".join(file.name for file in files[1:])
    return raw, f"{path} (extends {extended})" if extended else str(path)


def _read(path: Path) -> dict[str, Any]:
    """The sections of one file, as written."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "give a UTF-8 text file") from None
    raw = parse_yaml(text, str(path))
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold sections (data:, model:, train:, ...), not {type(raw).__name__}")
    return raw


def _extended_file(path: Path, name: object) -> Path:
    """The file that ``extends: NAME`` in ``path`` means.

    A name that ends in .yaml or .yml is a file in the same folder; any other name is a built-in config.
    Nothing else is allowed, so that a config from elsewhere can read only the files that came with it.
    """
    where = f"{path}: extends: {_short(name)}"
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 200:
        raise UserError(f"{where}: not a name", "e.g. extends: cyclical")
    if name in builtin_names():
        return _builtin_root() / f"{name}.yaml"
    if not name.endswith((".yaml", ".yml")):
        beside = (path.parent / f"{Path(name).name}.yaml").is_file()
        hint = f"for the file in this folder write extends: {Path(name).name}.yaml" if beside else ""
        raise UserError(f"{where}: not a built-in config", hint or _near_builtin(name))
    file = path.parent / name
    if Path(name).name != name or file.resolve().parent != path.parent.resolve():
        raise UserError(f"{where}: not in the same folder", "copy that file beside this one")
    if not file.is_file():
        stem = name.rpartition(".")[0]
        hint = f"for the built-in config write extends: {stem}" if stem in builtin_names() else ""
        raise UserError(f"{where}: no such file in the same folder", hint)
    return file


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``change`` on top, section by section.

    A different ``model.name`` drops the keys of the base's model. An empty section changes nothing, but
    ``teacher_forcing: null`` removes that section: some models have none.
    """
    merged = dict(base)
    model = change.get("model")
    if isinstance(model, dict) and model.get("name", ...) not in (..., _model_name(base)):
        merged["model"] = {}
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merged(old, value)
        elif not (isinstance(old, dict) and value is None) or key == "teacher_forcing":
            merged[key] = value
    return merged


def _model_name(raw: Mapping[str, Any]) -> Any:
    section = raw.get("model")
    return section.get("name", "pose") if isinstance(section, dict) else "pose"


def from_dict(raw: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "config") -> RunConfig:
    """A validated config from plain data, with overrides applied in order.

    Args:
        where: the file that ``raw`` is from, for error messages. A mistake in an override names the
            override instead.

    Raises:
        UserError: see ``load``.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()
    }
    # model.name first: it drops the old model's keys, but must not drop overrides for the new one.
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].strip() != "model.name"):
        _apply(merged, override)
    try:
        return _checked(merged)
    except UserError as error:
        if overrides:
            from_dict(raw, where=where)  # raises where the file itself is wrong
            where = _blamed(overrides, error.message) or f"{where} with these overrides"
        raise UserError(f"{where}: {error.message}", error.hint) from None


def changes(before: RunConfig, after: RunConfig) -> dict[str, list[Any]]:
    """The keys in which two configs differ, e.g. ``train.epochs``, with ``[old, new]`` values; None for a key
    that only one of them has."""
    old, new = dict(_leaves(before.to_dict())), dict(_leaves(after.to_dict()))
    keys = {**old, **new}
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _blamed(overrides: Sequence[str], message: str) -> str:
    """The override that a message is about: the last one for the key that the message starts with."""
    found = re.match(r"[\w.]+", message)
    fault = (found[0] if found else "") + "."
    for override in reversed(overrides):
        key = override.partition("=")[0].strip() + "."
        if len(overrides) == 1 or key.startswith(fault) or fault.startswith(key):
            return f"override {_short(override, quoted=False)}"
    return ""


def _checked(raw: dict[str, Any]) -> RunConfig:
    """The validated config; a section whose keys are all commented out gets its defaults."""
    empty = {key for key in RunConfig.model_fields.keys() - {"seed"} if raw.get(key, ...) is None}
    return _validate(RunConfig, _with_model({key: raw[key] for key in raw if key not in empty}))


def _with_model(raw: dict[str, Any]) -> dict[str, Any]:
    """``raw`` with ``model`` validated by that model's own schema, and with ``teacher_forcing`` if the model
    uses it."""
    from .. import models  # imports torch, so only when a config is loaded

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
            f"teacher_forcing: no meaning for model {name}, whose predictions do not depend on each other",
            "remove the section, or add teacher_forcing=null",
        )
    if not model.parallel and forcing is None:
        forcing = {}
    parsed = _validate(model.Config, {**section, "name": name}, "model.")
    return {**raw, "model": parsed, "teacher_forcing": forcing}


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set one key of ``raw``; sections on the way are copied."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{override}: not an override", "write section.key=value, e.g. train.epochs=10")
    value = _override_value(text.strip(), override)
    if value == "":
        raise UserError(
            f"{override}: no value after the equals sign",
            f"is a shell variable unset? {key.strip()}=null unsets the key",
        )
    target = raw
    for part in parts[:-1]:
        inner = target.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise UserError(f"{key}: {part} is a value, not a section")
        target[part] = dict(inner or {})
        target = target[part]
    if parts == ["model", "name"] and value != target.get("name", "pose"):
        target.clear()  # the other keys belong to the model that is replaced
    target[parts[-1]] = value


def _override_value(text: str, override: str) -> Any:
    """The value of an override: a list, section or quoted text as YAML, anything else as one scalar, so that
    a folder may be named ``set #2`` or ``a: b``."""
    if not text:
        return ""
    if text.startswith(tuple("[{'\"!")):
        return parse_yaml(text, f"override {_short(override, quoted=False)}")
    try:
        return parse_scalar(text)
    except ValueError:
        raise UserError(f"override {_short(override, quoted=False)}: not a valid value") from None


def _validate(schema: type[Schema], raw: Any, prefix: str = "") -> Schema:
    """``raw`` as ``schema``.

    Args:
        prefix: put before the schema's own keys in messages, e.g. ``model.``.
    """
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        known = _all_keys(RunConfig)
        if prefix:
            known += _all_keys(schema, prefix)
        elif isinstance(raw, dict) and isinstance(raw.get("model"), BaseModel):
            known += _all_keys(type(raw["model"]), "model.")
        faults = [_explain(fault, prefix, known) for fault in error.errors()]
        more = ""
        if len(faults) > 1:
            more = f" (and {len(faults) - 1} more: {'; '.join(message for message, _ in faults[1:4])})"
        raise UserError(faults[0][0] + more, faults[0][1]) from None


def _explain(fault: Any, prefix: str, known: Sequence[str]) -> tuple[str, str]:
    """(message, hint) for one pydantic error.

    Args:
        known: every key of the config, e.g. ``train.epochs``.
    """
    key = (prefix + ".".join(str(part) for part in fault["loc"])).rstrip(".")
    if fault["type"] == "extra_forbidden":
        return _unknown(key, known)
    if fault["type"] == "value_error":
        text = str(fault["ctx"]["error"])
        return (f"{key}.{text}" if key else text), ""
    text, hint = fault["msg"][0].lower() + fault["msg"][1:], ""
    if fault["type"] == "model_type":
        text = f"this is a section with keys of its own: {', '.join(_last_parts(key, known))}"
    if fault["type"] == "literal_error":
        options = re.findall(r"'([^']+)'", fault["ctx"]["expected"])
        hint = _nearest(str(fault["input"]), options, listed=False)
    return f"{key}: {_short(fault['input'])} is not allowed; {text}", hint


def _unknown(key: str, known: Sequence[str]) -> tuple[str, str]:
    """(message, hint) for a key that does not exist. Suggests the nearest spelling in its section and the
    same name in other sections (``optim.lr`` for ``train.lr``), or else the nearest spelling in any
    section."""
    section, _, name = key.rpartition(".")
    here = _last_parts(section, known)
    near = [f"{section}.{match}".lstrip(".") for match in difflib.get_close_matches(name, here, n=1)]
    near += [other for other in known if other.rpartition(".")[2] == name]
    if not near:
        names = {other.rpartition(".")[2]: other for other in known}
        near = [names[match] for match in difflib.get_close_matches(name, names, n=1, cutoff=0.7)]
    if near:
        return f"{key}: unknown key; did you mean {' or '.join(near)}?", ""
    return f"{key}: unknown key", f"known here: {', '.join(here)}"


def _all_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a schema, with its section: ``train``, ``train.augment``, ``train.augment.flip``..."""
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        union = get_origin(field.annotation) in (Union, UnionType)
        for option in get_args(field.annotation) if union else (field.annotation,):
            if isinstance(option, type) and issubclass(option, BaseModel):
                keys += _all_keys(option, f"{prefix}{name}.")
    return keys


def _last_parts(section: str, known: Sequence[str]) -> list[str]:
    """The keys of a section, without its name; the names of the sections for ``""``."""
    return sorted(key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section)


def _nearest(word: str, options: Sequence[str], listed: bool = True) -> str:
    """A hint: the option with the nearest spelling, or else all options if ``listed``."""
    near = difflib.get_close_matches(word, options, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are: {', '.join(options)}" if listed else ""


def _short(value: object, quoted: bool = True) -> str:
    """A value for a message, cut to a length that fits one line."""
    text = repr(value) if quoted else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
