"""Ctrl-C and SIGTERM: a flag for a loop that saves before it ends, an exception for everything else."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from .errors import CvaeError

STOPS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRun(CvaeError):  # noqa: N818  (not an error: the user asked for it)
    """Stopped from outside, after saving. Exit status 128 + the signal's number."""

    def __init__(self, signum: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signum


class Stopped(KeyboardInterrupt):
    """Stopped from outside, without saving. ``exit_code`` is 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


class Interruption:
    """While the context is open, the first SIGINT or SIGTERM is stored in ``signum``; a second one raises
    ``Stopped``, and a third ends the process at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._handling = _handled_by(self._note)

    def __enter__(self) -> Interruption:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            _stop(signum, frame)
        self.signum = signum


def stoppable() -> contextlib.AbstractContextManager[None]:
    """While the context is open, the first SIGINT or SIGTERM raises ``Stopped``, which lets writers remove
    their part files; a second one ends the process at once."""
    return _handled_by(_stop)


def _stop(signum: int, frame: FrameType | None) -> None:
    for each in STOPS:
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(signum)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # Only the main thread may set handlers; in other threads signals keep their usual effect.
    main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, handler) for signum in STOPS} if main else {}
    try:
        yield
    finally:
        for signum, usual in before.items():
            signal.signal(signum, usual)
