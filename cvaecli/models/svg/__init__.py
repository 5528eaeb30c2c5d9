"""SVG: stochastic video generation with a fixed, learned or hierarchical prior (Denton & Fergus 2018)."""

from __future__ import annotations

from .model import MODEL

__all__ = ["MODEL"]
