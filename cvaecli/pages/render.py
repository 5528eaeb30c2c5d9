"""Renders Jinja2 templates. Values from files are escaped, so that no script in them can run."""

from __future__ import annotations

import base64
import hashlib
import math
from importlib.metadata import version
from typing import Any

import jinja2
from markupsafe import Markup

from ..errors import UserError


def page(template: str, *, script: str = "page.js", **values: Any) -> str:
    """A self-contained HTML page.

    Its Content-Security-Policy forbids all scripts but its own, and all requests (a template may allow those
    to the page's own server).

    Args:
        script: template of the page's script.
    """
    environment = _environment(autoescape=True)
    source = environment.get_template(script).render()
    digest = base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template(template).render(
        script=Markup(source), script_hash=digest, version=version("cvae"), **values
    )


def markdown(template: str, **values: Any) -> str:
    """A Markdown document; values cannot break a table or become HTML."""
    environment = _environment(autoescape=False)
    environment.finalize = lambda value: _markdown(value) if type(value) is str else value
    environment.filters["as_is"] = lambda text: Markup(" ".join(str(text).split()))
    return environment.get_template(template).render(**values)


def _markdown(text: str) -> str:
    for character in "\\`*_[]|":
        text = text.replace(character, "\\" + character)
    return text.replace("<", "&lt;").replace("\n", " ")


def _environment(autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cvaecli.pages"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fixed"] = fixed
    environment.filters["capital"] = lambda text: text[:1].upper() + text[1:]
    return environment


def fixed(value: float, digits: int) -> str:
    """A number with this many digits; empty if it is NaN."""
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else ""


def check_suffix(suffix: str, allowed: tuple[str, ...], out: Any) -> None:
    """Refuse an ``--out`` with an unknown suffix.

    Raises:
        UserError: the suffix is not among ``allowed``.
    """
    if suffix not in allowed:
        raise UserError(f"--out {out}: unknown suffix {suffix!r}", f"one of {', '.join(allowed)}")
