"""``train.rarity``: which labels count as rare, and how often their frames are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import make_clip, make_config

from cvaecli import models
from cvaecli.config.schema import TrainConfig
from cvaecli.data.clip import Clip
from cvaecli.engine import rarity as module
from cvaecli.engine.batches import Sampler
from cvaecli.engine.rarity import rarity
from cvaecli.errors import UserError


def labels(common: int, rare: int) -> np.ndarray:
    """Nearly equal pictures, then some that differ from them and from one another."""
    rng = np.random.default_rng(0)
    made = np.full((common + rare, 3, 16, 32), 255, np.uint8)
    made[:, :, 4:8, 8:12] = rng.integers(0, 20, (common + rare, 3, 4, 4))
    made[common:] = rng.integers(0, 255, (rare, 3, 16, 32))
    return made


def test_labels_unlike_the_others_are_rare() -> None:
    found = rarity([labels(95, 5)])
    assert found.shape == (100,) and found[:95].max() < 1 < found[95:].min()
    assert found[95:].min() > 5 * found[:95].max()


def test_a_pose_is_as_rare_wherever_the_person_stands() -> None:
    made = np.full((31, 3, 32, 64), 255, np.uint8)
    for t in range(30):
        made[t, :, 8:20, 2 * t + 1 : 2 * t + 4] = 0  # an upright stick that walks through the picture
    made[30, :, 18:20, 20:32] = 0  # a lying one
    found = rarity([made])
    assert found[30] > 10 * found[2:28].max()


def test_frames_with_equal_labels_are_still_drawn() -> None:
    found = rarity([np.concatenate((labels(1, 0).repeat(40, 0), labels(0, 10)))])
    assert found[:40].unique().tolist() == [module.LEAST] and found[40:].min() > 1


def test_how_the_labels_are_divided_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = labels(60, 4)
    at_once = rarity([whole])
    monkeypatch.setattr(module, "CHUNK", 7)
    torch.testing.assert_close(rarity([whole[:20], whole[20:]]), at_once)
    monkeypatch.setattr(module, "MOST", 30)  # compared with every third label
    assert rarity([whole])[60:].min() > 5 * rarity([whole])[:60].max()


def test_equal_labels_are_all_as_rare() -> None:
    assert rarity([labels(1, 0).repeat(9, 0)]).tolist() == [1.0] * 9
    assert rarity([labels(1, 0)]).tolist() == [1.0]


@pytest.mark.parametrize("sampling", ["pairs", "windows"])
def test_frames_are_drawn_as_often_as_they_are_to_be(sampling: str) -> None:
    train = TrainConfig(window=2, stride=1, batch_size=50, steps_per_epoch=400)
    chances = torch.tensor([1.0, 0.0, 3.0, 4.0, 2.0, 6.0]).double()
    one = Sampler([4, 2], train, sampling, 0, chances=chances)
    counts = torch.zeros(6)
    for clip, frame in one.epoch(0):
        starts = frame[:, -1] if sampling == "pairs" else frame[:, 0]
        counts += torch.bincount(starts + 4 * clip, minlength=6)
    # A window's chance is the mean of its frames': 1, 3, 7 of the first clip, 8 of the second, halved.
    expected = chances if sampling == "pairs" else torch.tensor([1.0, 3.0, 7.0, 0.0, 8.0, 0.0])
    torch.testing.assert_close(counts / counts.sum(), (expected / expected.sum()).float(), atol=0.02, rtol=0)


def test_draws_are_a_function_of_seed_epoch_and_step() -> None:
    train = TrainConfig(window=2, batch_size=4, steps_per_epoch=6)
    chances = torch.linspace(0.1, 2, 30).double()
    whole = [frame.tolist() for _, frame in Sampler([30], train, "pairs", 1, chances=chances).epoch(3)]
    again = [
        frame.tolist() for _, frame in Sampler([30], train, "pairs", 1, chances=chances).epoch(3, first=2)
    ]
    other = [frame.tolist() for _, frame in Sampler([30], train, "pairs", 1, chances=chances).epoch(4)]
    assert whole[2:] == again and whole != other


def test_a_config_draws_by_the_labels_of_its_training_clips() -> None:
    clip = Clip("clip", make_clip(100, size=16).frames, labels(95, 5)[..., :16])
    train = {"window": 2, "batch_size": 10, "steps_per_epoch": 40}
    for power, least, most in ((0, 0.0, 0.1), (1, 0.5, 0.95), (2, 0.95, 1.0)):
        config = make_config(train={**train, "rarity": power})
        draws = Sampler.of(config, models.load("reference"), [clip]).epoch(0)
        share = torch.cat([frame[:, -1] >= 95 for _, frame in draws]).float().mean()
        assert least <= share <= most, (power, share)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match=r"rarity: draws frames at random; set train\.shuffle=true"):
        make_config(train={"rarity": 1, "shuffle": False})
    vectors = Clip("arm", make_clip(9).frames, np.zeros((9, 7), np.float32))
    with pytest.raises(UserError, match=r"train\.rarity: the conditions are vectors"):
        Sampler.of(make_config(train={"rarity": 1.0}), models.load("reference"), [vectors])
