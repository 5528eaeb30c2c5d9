"""Dance: frames and label images in folders, cut into clips."""

from __future__ import annotations

from .source import Dance

__all__ = ["Dance"]
