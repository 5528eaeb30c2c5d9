"""A consumer in a thread of its own: order, errors on both sides, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cvaecli import media
from cvaecli.errors import CvaeError, UserError
from cvaecli.media import mp4
from cvaecli.media.background import Consumer


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "consumer"]


class BrokenError(Exception):
    pass


def test_items_come_out_in_order_and_in_another_thread() -> None:
    got: list[tuple[int, str]] = []

    def consume(items: Iterable[int]) -> None:
        got.extend((item, threading.current_thread().name) for item in items)

    with Consumer(consume) as consumer:
        for start in range(0, 12, 3):
            consumer.put(range(start, start + 3))
    assert got == [(item, "consumer") for item in range(12)]


def test_who_is_faster_waits() -> None:
    taken = threading.Event()
    go_on = threading.Semaphore(0)
    consumed: list[int] = []

    def consume(items: Iterable[int]) -> None:
        for item in items:
            taken.set()
            go_on.acquire()
            consumed.append(item)

    with Consumer(consume, ahead=1) as consumer:
        consumer.put([0])
        assert taken.wait(10)
        consumer.put([1])
        third = threading.Thread(target=consumer.put, args=([2],))
        third.start()
        third.join(0.2)
        assert third.is_alive(), "one is consumed, one waits: there is no room for a third"
        go_on.release(3)
        third.join(10)
        assert not third.is_alive()
    assert consumed == [0, 1, 2]


@pytest.mark.parametrize("fails_at", [0, 1, 5, 6])
def test_an_error_of_the_consumer_is_raised_where_items_are_put(fails_at: int) -> None:
    def consume(items: Iterable[int]) -> None:
        for item in items:
            if item == fails_at:
                raise BrokenError
        if fails_at == 6:
            raise BrokenError

    with pytest.raises(BrokenError), Consumer(consume) as consumer:
        for item in range(6):
            consumer.put([item])


def test_an_error_before_the_first_item_is_raised_before_anything_is_put() -> None:
    def consume(items: Iterable[int]) -> None:
        raise BrokenError

    with pytest.raises(BrokenError), Consumer(consume):
        raise AssertionError("the block must not begin")


@pytest.mark.parametrize("put", [0, 1, 3])
def test_an_error_of_the_producer_stops_the_consumer(put: int) -> None:
    ended: list[str] = []

    def consume(items: Iterable[int]) -> None:
        try:
            for _ in items:
                pass
            ended.append("as if complete")
        finally:
            ended.append("cleaned up")

    with pytest.raises(BrokenError), Consumer(consume) as consumer:
        for item in range(put):
            consumer.put([item])
        raise BrokenError
    assert ended == ["cleaned up"]


def test_nothing_to_consume_and_a_consumer_that_stops_early() -> None:
    got: list[int] = []
    with Consumer[int](got.extend):
        pass
    assert got == []
    with Consumer[int](lambda items: got.append(next(items))) as consumer:
        for item in range(9):
            consumer.put([item])
    assert got == [0]


def test_an_interruption_while_the_thread_starts_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    ended: list[str] = []

    def consume(items: Iterable[int]) -> None:
        try:
            list(items)
        finally:
            ended.append("cleaned up")

    consumer = Consumer(consume)
    monkeypatch.setattr(consumer._started, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), consumer:
        raise AssertionError("the block must not begin")
    assert ended == ["cleaned up"]


def frames(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("name", ["x.gif", "x.mp4", "x.png", "x.npz", "x"])
def test_a_file_appears_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    with pytest.raises(KeyboardInterrupt), Consumer(lambda each: media.write(each, out)) as writer:
        writer.put(frames(20))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with Consumer(lambda each: media.write(each, out)) as writer:
        writer.put(frames(20))
        assert not out.exists()
        writer.put(frames(1))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_writers_error_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown suffix"), Consumer(_to(tmp_path / "x.avi")):
        raise AssertionError("told before a frame is made")
    monkeypatch.setattr(mp4, "_H264", ["-crf", "nonsense", "-f", "mp4"])
    with pytest.raises(CvaeError, match="ffmpeg"), Consumer(_to(tmp_path / "x.mp4")) as writer:
        for _ in range(3000):
            writer.put(frames(1))
    assert list(tmp_path.iterdir()) == []


def _to(path: Path):  # type: ignore[no-untyped-def]
    return lambda each: media.write(each, path)
