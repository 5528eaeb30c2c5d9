"""A consumer in its own thread, so that files are written while the model predicts."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Consumer(Generic[T]):
    """Runs a function that reads from an iterator, and feeds it the items given to ``put``.

    ::

        with Consumer[Frame](lambda frames: media.write(frames, "x.gif")) as writer:
            for piece in pieces:
                writer.put(piece)

    The function runs in a thread. At most ``ahead`` pieces wait for it, so that memory stays constant:
    ``put`` blocks while there are more. The block ends when everything is consumed. If the block raises, the
    function's iterator raises too, so that the function can clean up.

    Args:
        consume: called once, with the items of all pieces in order.
        ahead: number of pieces that may wait, in addition to the one that is being consumed.

    Raises:
        Exception: what ``consume`` raised; at the start of the block if it failed before it asked for an
            item, else at the next ``put`` or at the end of the block.
    """

    def __init__(self, consume: Callable[[Iterator[T]], object], ahead: int = 1) -> None:
        self._consume = consume
        self._queue: queue.Queue[Iterable[T] | _End] = queue.Queue(ahead)
        self._end: _End | None = None
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    def __enter__(self) -> Consumer[T]:
        try:
            self._thread.start()
            self._started.wait()
            self._raise_error()
        except BaseException:
            self._finish(_End(complete=False))
            raise
        return self

    def put(self, piece: Iterable[T]) -> None:
        """Pass on items; blocks while the queue is full."""
        self._raise_error()
        self._queue.put(piece)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(_End(complete=kind is None))
        if kind is None:
            self._raise_error()

    def _finish(self, end: _End) -> None:
        self._queue.put(end)  # the thread empties the queue until it sees this, whatever happens
        if self._thread.ident is not None:  # else it was interrupted while it was being started
            self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._consume(self._items())
        except _AbandonedError:
            pass  # the block has already raised the relevant error
        except BaseException as error:  # raised by the next `put`, or at the end of the block
            self._error = error
        self._started.set()
        for _ in self._pieces():  # after a failure, empty the queue so that `put` does not wait forever
            pass

    def _items(self) -> Iterator[T]:
        self._started.set()
        for piece in self._pieces():
            yield from piece
        if self._end is None or not self._end.complete:
            raise _AbandonedError

    def _pieces(self) -> Iterator[Iterable[T]]:
        while self._end is None:
            piece = self._queue.get()
            if isinstance(piece, _End):
                self._end = piece
            else:
                yield piece


class _End:
    """Marks the end of a queue."""

    def __init__(self, complete: bool) -> None:
        self.complete = complete


class _AbandonedError(Exception):
    """Raised in the consumer's thread if the block ended before the last item."""
