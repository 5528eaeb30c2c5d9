"""Matplotlib's figures as SVG inside a page: text stays text, colours follow the light or dark theme."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from .from_plots import style

RC: dict[Any, Any] = {
    **style.RC,
    "svg.fonttype": "none",  # small files, and the reader's own fonts
    "svg.hashsalt": "cvae",  # equal figures give equal files
    "text.parse_math": False,  # a run's name may hold $
}

_THEME = {
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    "#e6e6e6": "var(--rule)",  # the grid
    "#cccccc": "var(--rule)",
    "#595959": "var(--mute)",
    "#8c8c8c": "var(--mute)",
}
"""The greys of a figure; its other colours are visible on white and on black."""


def to_svg(figure: Figure) -> str:
    """The figure as SVG text, drawn within ``RC``."""
    buffer = io.StringIO()
    with mpl.rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inline(svg: str, prefix: str, title: str) -> Markup:
    """An SVG file's text as an element of a page.

    Args:
        svg: written by matplotlib, which escapes the texts in it.
        prefix: put before every id, because ids must be unique in the page.
        title: the content of the figure, for readers who cannot see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\b(id=")|(url\(#)|(href="#)', lambda m: f"{m[0]}{prefix}-", body)
    for colour, variable in _THEME.items():
        body = re.sub(rf"(fill|stroke): {colour}", rf"\1: {variable}", body)
    # Text without a fill is black
    head = Markup('<svg role="img" aria-label="{}" fill="currentColor" ').format(title)
    viewbox = re.search(r'viewBox="[\d. ]+"', body)
    return Markup(head + Markup(viewbox[0] if viewbox else "") + Markup(body[body.index(">") :]))


def draw(figure: Figure, suffix: str) -> bytes:
    """The figure as the content of a .png (300 dpi) or .svg file."""
    if suffix == ".svg":
        return to_svg(figure).encode("utf-8")
    buffer = io.BytesIO()
    with mpl.rc_context(RC):
        figure.savefig(buffer, format="png", dpi=300)
    return buffer.getvalue()
