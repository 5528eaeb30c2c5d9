"""Training rows joined from two places of a clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, make_clip, make_config
from torch import Tensor

from cvaecli.config.schema import TrainConfig
from cvaecli.engine.batches import Batch, Frames, Sampler, batches
from cvaecli.engine.joining import CANDIDATES, DRAWS, candidates, joined, joining
from cvaecli.errors import UserError

B, K, H, W = 12, 2, 10, 14


def material() -> tuple[Tensor, ...]:
    """Frames, labels, those of the candidates, and draws. A label is white with some ink in the middle."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(B, K, 3, H, W, generator=generator)
    others = torch.rand(B, CANDIDATES, K, 3, H, W, generator=generator)
    labels = torch.ones(B, K, 3, H, W)
    labels[..., 3:8, 4:11] = torch.rand(B, K, 3, 5, 7, generator=generator)
    draws = torch.rand(B, DRAWS, generator=generator)
    return frames, labels, others, 1 - others, draws


def side(made: Tensor, own: Tensor) -> np.ndarray:
    """Where one row's pictures are not its own, bool ``[H, W]``."""
    changed = (made != own).any(1)
    assert (changed == changed[0]).all(), "all frames of a row are cut along the same line"
    return changed[0].numpy()


def is_side_of_a_line(changed: np.ndarray) -> bool:
    """Full rows (or columns) from one border up to a line."""
    along = changed.all(0) if (changed.any(0) == changed.all(0)).all() else changed.all(1)
    return bool(
        (np.diff(along.astype(int)) != 0).sum() == 1 and changed.sum() in (along.sum() * H, along.sum() * W)
    )


def test_one_side_of_a_line_is_that_of_the_candidate_that_fits_best() -> None:
    frames, labels, other_frames, other_labels, draws = material()
    made_frames, made_labels = joined(frames, labels, other_frames, other_labels, draws)
    kinds = set()
    for b in range(B):
        changed = side(made_frames[b], frames[b])
        assert is_side_of_a_line(changed)
        mask = torch.from_numpy(changed)
        found = [n for n in range(CANDIDATES) if (made_frames[b] == other_frames[b, n])[..., mask].all()]
        assert len(found) == 1
        assert torch.equal(made_labels[b], torch.where(mask, other_labels[b, found[0]], labels[b]))
        # The line's pixels: the last on one side, and two on the other.
        vertical = (changed.any(0) == changed.all(0)).all() and not changed.all(0).all()
        along = changed.all(0) if vertical else changed.all(1)
        place = int(np.flatnonzero(np.diff(along.astype(int)))[0]) + 1
        near = slice(place - 1, place + 2)
        seam = (slice(None), near) if vertical else (near, slice(None))
        errors = [((other_frames[b, n] - frames[b]) ** 2)[(..., *seam)].sum() for n in range(CANDIDATES)]
        assert int(torch.stack(errors).argmin()) == found[0]
        assert (4 if vertical else 3) <= place <= (11 if vertical else 8), "the line crosses the ink"
        kinds.add((bool(vertical), bool(along[0])))
    assert len(kinds) == 4, "both directions, both sides"


def test_blank_labels_are_no_fault() -> None:
    frames, labels, other_frames, other_labels, draws = material()
    made, _ = joined(frames, torch.ones_like(labels), other_frames, other_labels, draws)
    assert all(is_side_of_a_line(side(made[b], frames[b])) for b in range(B))


def test_candidates_are_runs_of_the_rows_own_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    frame, length = torch.tensor([[3, 4, 5]] * 40 + [[0, 1, 2]] * 40), torch.tensor([9] * 40 + [4] * 40)
    found = candidates(torch.rand(80, DRAWS, generator=generator), frame, length)
    assert found.shape == (80, CANDIDATES, 3) and (found.diff(dim=2) == 1).all()
    assert set(found[:40, :, 0].flatten().tolist()) == set(range(7))
    assert set(found[40:, :, 0].flatten().tolist()) == {0, 1}


def test_the_wanted_share_of_rows_is_joined() -> None:
    draws = torch.rand(1000, DRAWS, generator=torch.Generator().manual_seed(0))
    assert len(joining(draws, 0.0)) == 0 and len(joining(draws, 1.0)) == 1000
    assert 220 < len(joining(draws, 0.25)) < 280


def drawn(share: float, rows: list[int] | None = None, **train: Any) -> list[Batch]:
    """The batches of an epoch of pairs."""
    config = TrainConfig(**{"window": 2, "batch_size": 6, "augment": {"join": share}, **train})
    clips = [make_clip(17, "a", size=16), make_clip(11, "b", seed=1, size=16)]
    sampler = Sampler([17, 11], config, "pairs", seed=0)
    return list(batches(Frames(clips, CPU), sampler, config, 0, 0, rows=rows))


def test_given_frames_and_other_rows_stay_what_they_were() -> None:
    plain, some, every = drawn(0.0), drawn(0.5), drawn(1.0)
    for a, b, c in zip(plain, some, every, strict=True):
        for whole in (b, c):
            assert torch.equal(whole.frames[:, :1], a.frames[:, :1])
            assert torch.equal(whole.condition[:, :1], a.condition[:, :1])
        changed = (b.frames != a.frames).flatten(1).any(1)
        assert torch.equal(b.frames[changed], c.frames[changed])
    assert (
        0
        < sum(int((b.frames != a.frames).flatten(1).any(1).sum()) for a, b in zip(plain, some, strict=True))
        < 20
    )


def test_a_process_gets_its_rows_of_the_whole_batch() -> None:
    for whole, part in zip(drawn(0.5), drawn(0.5, rows=[1, 4]), strict=True):
        assert torch.equal(part.frames, whole.frames[[1, 4]])
        assert torch.equal(part.condition, whole.condition[[1, 4]])


def test_rollout_starts_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"train\.augment\.join: would not fit"):
        make_config(train={"augment": {"join": 0.5}}, teacher_forcing={"rollout_starts": 0.5})
