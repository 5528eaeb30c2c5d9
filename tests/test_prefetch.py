"""Reading ahead changes when things are made, never what comes out, and leaves no thread behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cvaecli.engine.prefetch import ahead, on_host, to_device

CPU = torch.device("cpu")


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not running()


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("n", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_same_items_in_the_same_order(n: int, depth: int) -> None:
    assert list(ahead(iter(range(n)), depth)) == list(range(n))


def test_items_are_made_in_another_thread_before_they_are_asked_for() -> None:
    made = [threading.Semaphore(0) for _ in range(20)]
    count = 0

    def items() -> Iterator[str]:
        nonlocal count
        for one in made:
            count += 1
            one.release()
            yield threading.current_thread().name

    source = ahead(items(), depth=2)
    assert not running(), "nothing is made before the first is asked for"
    assert next(source) == "prefetch"
    for one in made[1:4]:
        assert one.acquire(timeout=10)
    assert count <= 4, "one in use, two that are ready, one that waits for room"
    source.close()  # type: ignore[attr-defined]
    assert count <= 5


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("taken", [1, 2, 9])
@pytest.mark.parametrize("how", ["closed", "forgotten", "raised"])
def test_an_abandoned_one_ends_its_thread(depth: int, taken: int, how: str) -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            closed.append(threading.current_thread().name)

    def use() -> None:
        for item in ahead(items(), depth):
            if item == taken:
                if how == "raised":
                    raise BrokenError
                return

    if how == "closed":
        source = ahead(items(), depth)
        assert [next(source) for _ in range(taken)] == list(range(taken))
        source.close()  # type: ignore[attr-defined]
    elif how == "forgotten":
        use()
    else:
        with pytest.raises(BrokenError):
            use()
    assert not running() and len(closed) == 1


def test_an_error_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise BrokenError

    source = ahead(items())
    assert [next(source) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(BrokenError):
        next(source)


def test_tensors_go_there_and_back() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = [to_device(values + k, CPU) for k in range(4)]
    for k, tensor in enumerate(on_host(iter(tensors))):
        np.testing.assert_array_equal(tensor.numpy(), values + k)


@pytest.mark.gpu
def test_copies_from_and_to_a_gpu_hold_the_right_values() -> None:
    """Buffers are reused while copies are under way: none may be read or overwritten too early."""
    cuda = torch.device("cuda")

    def pieces() -> Iterator[torch.Tensor]:
        for k in range(40):
            piece = to_device(np.full((64, 3, 64, 64), k, np.float32), cuda)
            slow = torch.randn(1500, 1500, device=cuda)
            for _ in range(20):
                slow = slow @ slow
            yield piece + 0 * slow.nan_to_num().clamp(-1, 1).mean()

    for k, piece in enumerate(on_host(pieces())):
        assert piece.is_pinned() and (piece == k).all()
    assert k == 39
