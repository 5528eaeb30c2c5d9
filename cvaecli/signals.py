"""Ctrl-C and SIGTERM as a flag that a loop reads, so that it can save before it ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from .errors import CvaeError


class InterruptedRun(CvaeError):  # noqa: N818  (not an error: the user asked for it)
    """Stopped from outside, after saving. Exit status 128 + the signal's number."""

    def __init__(self, signum: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signum


class Interruption:
    """While the context is open, the first SIGINT or SIGTERM is stored in ``signum``; a second one raises
    ``KeyboardInterrupt``."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        # Only the main thread may set handlers; in other threads signals keep their usual effect.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
