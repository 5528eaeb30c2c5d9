"""Which frames make up a batch, and what augmentation does to them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, make_clip, make_config
from torch import Tensor

from cvaecli import models
from cvaecli.config.loading import from_dict
from cvaecli.config.schema import AugmentConfig, TrainConfig
from cvaecli.engine import batches as module
from cvaecli.engine.augmentation import augment
from cvaecli.engine.batches import Frames, Sampler, batches, sampling, to_float
from cvaecli.errors import UserError
from cvaecli.seeding import stream

Drawn = list[tuple[list[int], list[list[int]]]]


def sampler(
    lengths: Sequence[int], sampling: str = "windows", seed: int = 0, partial: float = 1.0, **train: Any
) -> Sampler:
    config = TrainConfig(**{"window": 4, "batch_size": 2, **train})
    return Sampler(lengths, config, sampling, seed, partial)


def drawn(one: Sampler, epoch: int = 0, first: int = 0) -> Drawn:
    return [(clip.tolist(), frame.tolist()) for clip, frame in one.epoch(epoch, first)]


def flat(batches: Drawn) -> list[tuple[int, list[int]]]:
    return [(c, f) for clip, frame in batches for c, f in zip(clip, frame, strict=True)]


# --- windows ------------------------------------------------------------------------------------------


def test_without_shuffle_windows_are_those_of_the_course() -> None:
    """Non-overlapping, in order, int(frames * partial) // window of them."""
    one = sampler([103], shuffle=False, batch_size=1, partial=0.7)
    assert one.steps(0) == int(103 * 0.7) // 4 == 18
    assert flat(drawn(one)) == [(0, list(range(4 * k, 4 * k + 4))) for k in range(18)]


@pytest.mark.parametrize("sampling", ["windows", "pairs"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_no_row_holds_frames_of_two_clips_or_beyond_one(sampling: str, shuffle: bool) -> None:
    lengths = [4, 2, 13, 9]
    one = sampler(lengths, sampling, shuffle=shuffle, stride=3, batch_size=1)
    rows = [row for epoch in range(5) for row in flat(drawn(one, epoch))]
    for clip, frames in rows:
        assert min(frames) >= 0 and max(frames) < lengths[clip] and len(frames) == 4
        run = frames if sampling == "windows" else frames[1:]
        assert run == list(range(run[0], run[0] + len(run)))
    assert {clip for clip, _ in rows} == {0, 2, 3}, "the clip of 2 frames is too short"


def test_shuffled_windows_begin_anywhere_and_cover_every_frame() -> None:
    one = sampler([41], batch_size=1)
    epochs = [flat(drawn(one, epoch)) for epoch in range(60)]
    assert {frames[0] for rows in epochs for _, frames in rows} == set(range(38))
    for rows in epochs:  # one window in each stretch of a stride, in another order each time
        assert sorted(min(frames[0] // 4, 9) for _, frames in rows) == list(range(10))
    assert epochs[0] != epochs[1]
    assert [f[0] // 4 for _, f in epochs[0]] != sorted(f[0] // 4 for _, f in epochs[0])


def test_stride_is_the_distance_between_windows() -> None:
    starts = [frames[0] for _, frames in flat(drawn(sampler([12], shuffle=False, stride=2, batch_size=1)))]
    assert starts == [0, 2, 4, 6, 8]


# --- pairs --------------------------------------------------------------------------------------------


def test_pairs_target_every_frame_once_and_take_the_reference_anywhere() -> None:
    one = sampler([5, 7], "pairs", window=2, batch_size=1)
    rows = flat(drawn(one))
    assert sorted((clip, frames[-1]) for clip, frames in rows) == [
        (clip, frame) for clip, length in enumerate([5, 7]) for frame in range(length)
    ]
    references = {(c, f[0]) for epoch in range(40) for c, f in flat(drawn(one, epoch))}
    assert references == {(clip, frame) for clip, length in enumerate([5, 7]) for frame in range(length)}


def test_pairs_with_several_given_frames_draw_only_those_freely() -> None:
    one = Sampler([20], TrainConfig(window=5, batch_size=1, shuffle=False), "pairs", 0, n_past=2)
    rows = [frames for _, frames in flat(drawn(one))]
    assert [frames[2:] for frames in rows] == [[3 * k, 3 * k + 1, 3 * k + 2] for k in range(6)]
    assert any(frames[1] != frames[0] + 1 for frames in rows)


# --- order and counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["windows", "pairs"])
def test_the_order_is_a_function_of_seed_and_epoch(sampling: str) -> None:
    lengths = [30, 17]
    first, again = (sampler(lengths, sampling, seed=5) for _ in range(2))
    whole = drawn(first, 3)
    drawn(again, 0)  # what was drawn before does not matter
    assert drawn(again, 3) == whole
    for start in (1, 2, len(whole)):
        assert drawn(again, 3, start) == whole[start:]
    assert drawn(first, 4) != whole and drawn(sampler(lengths, sampling, seed=6), 3) != whole


def test_the_last_incomplete_batch_is_dropped() -> None:
    one = sampler([28], shuffle=False, batch_size=3)
    assert one.steps(0) == 2 and len(drawn(one)) == 2
    assert all(len(clip) == 3 for clip, _ in drawn(one))


def test_steps_per_epoch_goes_round_the_windows_in_new_orders() -> None:
    one = sampler([40], steps_per_epoch=13, batch_size=2)
    rows = [frames[0] // 4 for _, frames in flat(drawn(one))]
    assert len(rows) == 26
    assert sorted(min(r, 9) for r in rows[:10]) == sorted(min(r, 9) for r in rows[10:20]) == list(range(10))
    assert rows[:10] != rows[10:20]
    assert drawn(one, 0, 6) == drawn(one)[6:]


def windows_of_epochs(one: Sampler, epochs: range, length: int = 4) -> list[list[int]]:
    """Numbers of the windows (of ``length`` frames, in one clip) that each epoch draws."""
    return [[frames[0] // length for _, frames in flat(drawn(one, epoch))] for epoch in epochs]


def test_without_shuffling_a_short_epoch_goes_on_where_the_last_one_stopped() -> None:
    one = sampler([40], shuffle=False, steps_per_epoch=2, batch_size=2)
    assert windows_of_epochs(one, range(4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]
    assert windows_of_epochs(one, range(2, 3)) == [[8, 9, 0, 1]], "a function of the epoch"
    assert drawn(one, 2, 1) == drawn(one, 2)[1:]


def test_without_shuffling_whole_epochs_begin_at_the_start() -> None:
    one = sampler([40], shuffle=False, batch_size=3)
    assert windows_of_epochs(one, range(2)) == [[*range(9)]] * 2


def test_without_shuffling_the_epochs_after_the_fast_ones_begin_at_the_start() -> None:
    fast = {"fast_epochs": 3, "fast_partial": 0.5}
    one = sampler([40], shuffle=False, steps_per_epoch=1, batch_size=3, **fast)
    assert windows_of_epochs(one, range(5)) == [
        [0, 1, 2],
        [3, 4, 0],
        [1, 2, 3],
        [0, 1, 2],
        [3, 4, 5],
    ]


def test_fast_epochs_use_the_beginning_only() -> None:
    one = sampler([40, 40], shuffle=False, batch_size=1, fast_epochs=2, fast_partial=0.25)
    assert [one.steps(epoch) for epoch in range(3)] == [5, 5, 20]
    assert flat(drawn(one, 1))[-1] == (0, [16, 17, 18, 19])


@pytest.mark.parametrize(
    ("lengths", "train", "named"),
    [
        ([7], {"batch_size": 2}, "train.batch_size"),
        ([3, 2], {"steps_per_epoch": 5}, "train.window"),
        ([80], {"batch_size": 5, "fast_epochs": 1, "fast_partial": 0.2}, "train.batch_size"),
    ],
)
def test_too_few_frames_name_the_key(lengths: list[int], train: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        sampler(lengths, **train)
    assert named in str(caught.value)


# --- gathering ----------------------------------------------------------------------------------------


def test_resident_and_mapped_frames_give_equal_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [make_clip(9, "a"), make_clip(6, "b", seed=1, steps=8)]
    train = make_config().train
    one = Sampler([clip.n_frames for clip in clips], train, "windows", 0)
    resident = Frames(clips, CPU)
    monkeypatch.setattr(module, "RESIDENT_SHARE", 0)
    mapped = Frames(clips, CPU)
    assert resident.resident and not mapped.resident
    pairs = zip(batches(resident, one, train, 0, 0), batches(mapped, one, train, 0, 0), strict=True)
    for a, b in pairs:
        assert torch.equal(a.frames, b.frames) and torch.equal(a.condition, b.condition)


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Frames:
    """Frames that stay in the memory map and are read ahead."""
    monkeypatch.setattr(module, "RESIDENT_SHARE", 0)
    return Frames([make_clip(9, "a"), make_clip(6, "b", seed=1, steps=8)], CPU)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_epoch_that_is_left_leaves_no_thread(mapped: Frames) -> None:
    train = make_config(train={"steps_per_epoch": 50}).train
    source = batches(mapped, Sampler([9, 6], train, "windows", 0), train, 0, 0)
    next(source)
    assert readers(), "the next batches are being read"
    source.close()  # type: ignore[attr-defined]
    assert not readers()


def test_what_goes_wrong_while_reading_ahead_is_raised(mapped: Frames) -> None:
    good, bad = (torch.tensor([0]), torch.tensor([[2, 3]])), (torch.tensor([0]), torch.tensor([[9, 10]]))
    source = mapped.batches([good, good, bad, good])
    (draw, one), (_, other) = next(source), next(source)
    assert draw is good and torch.equal(one.frames, other.frames)
    with pytest.raises(IndexError):
        next(source)
    assert not readers()


def test_a_batch_holds_the_frames_it_names() -> None:
    clips = [make_clip(9, "a"), make_clip(6, "b", seed=1, steps=8)]
    clip, frame = torch.tensor([1, 0]), torch.tensor([[2, 3], [7, 8]])
    batch = Frames(clips, CPU).gather(clip, frame)
    assert batch.frames.shape == (2, 2, 3, 8, 8) and batch.frames.dtype == torch.float32
    np.testing.assert_array_equal((batch.frames[0] * 255).round().numpy(), clips[1].frames[2:4])
    np.testing.assert_array_equal((batch.condition[1] * 255).round().numpy(), clips[0].condition[7:9])


def test_vectors_are_not_scaled() -> None:
    assert to_float(torch.tensor([300.0, -2.0])).tolist() == [300, -2]
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


# --- augmentation -------------------------------------------------------------------------------------


def pictures(samples: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames, labels = torch.rand(2, samples, 3, 3, 10, 14, generator=generator)
    return frames, labels


def test_augment_off_gives_the_same_tensors() -> None:
    frames, labels = pictures()
    out = augment(frames, labels, AugmentConfig(), stream(0, "augment"))
    assert out[0] is frames and out[1] is labels


def test_a_flip_is_an_exact_mirror_of_frames_and_labels() -> None:
    frames, labels = pictures()
    out = augment(frames, labels, AugmentConfig(flip=1), stream(0, "augment"))
    torch.testing.assert_close(out[0], frames.flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1], labels.flip(-1), atol=1e-5, rtol=0)


def test_half_of_the_samples_flip_each_with_all_its_frames() -> None:
    frames, labels = pictures(samples=40)
    out = augment(frames, labels, AugmentConfig(flip=0.5), stream(0, "augment"))
    kinds = []
    for b in range(40):
        flipped = torch.allclose(out[0][b], frames[b].flip(-1), atol=1e-5)
        for before, after in ((frames[b], out[0][b]), (labels[b], out[1][b])):
            torch.testing.assert_close(after, before.flip(-1) if flipped else before, atol=1e-5, rtol=0)
        kinds.append(flipped)
    assert 8 < sum(kinds) < 32


def test_a_shift_moves_by_whole_pixels_and_continues_the_border() -> None:
    frames, labels = pictures(samples=30)
    out = augment(frames, labels, AugmentConfig(shift=(2, 3)), stream(1, "augment"))
    padded = torch.nn.functional.pad(frames.flatten(0, 1), (3, 3, 2, 2), mode="replicate").unflatten(
        0, (30, 3)
    )
    moves = set()
    for b in range(30):
        matches = [
            (y, x)
            for y in range(5)
            for x in range(7)
            if torch.allclose(out[0][b], padded[b, ..., y : y + 10, x : x + 14], atol=1e-5)
        ]
        assert len(matches) == 1, "not a shift by whole pixels within the limits"
        y, x = matches[0]
        label = torch.nn.functional.pad(labels[b], (3, 3, 2, 2), mode="replicate")
        torch.testing.assert_close(out[1][b], label[..., y : y + 10, x : x + 14], atol=1e-5, rtol=0)
        moves.add(matches[0])
    assert len({y for y, _ in moves}) == 5 and len({x for _, x in moves}) >= 6


def test_zoom_keeps_a_flat_picture_and_changes_another() -> None:
    frames, labels = pictures()
    out = augment(frames, torch.full_like(labels, 0.3), AugmentConfig(zoom=0.2), stream(0, "augment"))
    torch.testing.assert_close(out[1], torch.full_like(labels, 0.3))
    assert not torch.allclose(out[0], frames, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "model", "asked", "drawn"),
    [
        ("dance", "anchored", None, "pairs"),
        ("dance", "pose", None, "windows"),
        ("robot", "anchored", None, "windows"),
        ("robot", "svg", None, "windows"),
        ("robot", "anchored", "pairs", "pairs"),
        ("dance", "pose", "pairs", "pairs"),
    ],
)
def test_people_are_drawn_as_the_model_likes_and_robots_in_windows(
    kind: str, model: str, asked: str | None, drawn: str
) -> None:
    config = from_dict({"data": {"kind": kind}, "model": {"name": model}, "train": {"sampling": asked}})
    assert sampling(config, models.load(model)) == drawn
