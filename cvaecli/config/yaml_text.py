"""YAML text as plain data: safe, with the scalars of YAML 1.2, and bounded in size."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..errors import UserError

MAX_CHARACTERS = 2**18
"""Longest config text that is read. The built-in ones have about 3,000 characters."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2 (``off`` is a word, ``1e-4`` is a number).

    A key that is given twice is an error; PyYAML silently takes the last one. Aliases are an error too: a few
    lines of them can expand to gigabytes.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)

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

    Args:
        where: the file or the override that the text is from, for the error message.

    Raises:
        UserError: not YAML, a key given twice, an alias, a tag for other than plain data, or too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where}: longer than {MAX_CHARACTERS} characters", "is this a config file?")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # The last three come from PyYAML itself when a value does not fit its tag, e.g. !!bool maybe.
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        unfit = isinstance(error, (LookupError, AttributeError))
        problem = "a value does not fit its !!tag" if unfit else str(error).splitlines()[0]
        problem = getattr(error, "problem", None) or problem
        syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        hint = "check the indentation and colons" if syntax else ""
        raise UserError(f"{where}{line}: not a valid config: {problem}", hint) from None


def parse_scalar(text: str) -> Any:
    """One value without YAML's other syntax: ``a: b`` and ``set #2`` stay text.

    Raises:
        ValueError: an integer with more digits than Python reads.
    """
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return loader.construct_object(yaml.ScalarNode(tag, text))
