"""Training windows that start from the model's own rollouts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import CPU, QUICK, AddingCVAE, make_clip, make_config

from cvaecli.engine.batches import to_float
from cvaecli.engine.events import EpochEvent, StepEvent
from cvaecli.engine.fit import Trainer
from cvaecli.engine.rollout import prior_noise, rollout
from cvaecli.engine.rollout_starts import LENGTH, RolloutStarts, segment
from cvaecli.metrics import shown
from cvaecli.models import load

TOY = {"grad_clip": None, "shuffle": False, "log_every": 1, "window": 3, "batch_size": 4, "epochs": 3}


def trainer(share: float = 0.5, model: Any = None, **sections: Any) -> Trainer:
    """The adding toy on two clips of different lengths."""
    config = make_config(
        train={**TOY, **sections.pop("train", {})},
        optim={"name": "sgd", "momentum": 0, "lr": 0.1},
        teacher_forcing={"rollout_starts": share},
        **sections,
    )
    clips = [make_clip(11, "a"), make_clip(14, "b", seed=1)]
    return Trainer(model or AddingCVAE(), config, CPU, clips, [])


def test_the_rollouts_are_those_of_prediction() -> None:
    clips = [make_clip(11, "a"), make_clip(14, "b", seed=1)]
    model = AddingCVAE()
    config = make_config(teacher_forcing={"rollout_starts": 1.0})
    starts = RolloutStarts(clips, config, CPU)
    starts.renew(model, 3, lambda: None)
    expected = []
    for clip in clips:
        frames, condition = (to_float(torch.from_numpy(a))[None] for a in (clip.frames, clip.condition))
        noise = prior_noise(
            model, [f"{clip.name} from 0"], (8, 8), prior="sample", seed=config.seed, n_past=1, sample=3
        )
        pieces = rollout(model, frames[:, :1], condition[:, :1], [condition[:, 1:]], noise, CPU)
        expected += [frames[0, :1], *(shown(piece)[0] for piece in pieces)]
    made = starts.state_dict()["rollouts"]
    assert torch.equal(made, (torch.cat(expected) * 255).round().byte())


def test_a_row_starts_from_the_rollouts_frame_before_its_first_predicted_one() -> None:
    one = trainer(share=1.0)
    one._starts.renew(one.model, 1, lambda: None)
    one.epoch = 1
    own = one._starts.state_dict()["rollouts"]
    for (clip, frame), batch in zip(one.sampler.epoch(1), one._batches(), strict=True):
        where = torch.tensor([0, 11])[clip] + frame[:, 1] - 1
        assert batch.first_input is not None
        assert torch.equal(batch.first_input, own[where] / 255)
        # The given frame itself stays the true one.
        assert torch.equal(batch.frames, one.frames.gather(clip, frame).frames)


def test_a_row_whose_target_is_the_clips_first_frame_keeps_the_given_frame() -> None:
    one = trainer(share=1.0)
    one._starts.load_state_dict({"rollouts": torch.full((25, 3, 8, 8), 7, dtype=torch.uint8)})
    clip, frame = torch.tensor([1, 1]), torch.tensor([[5, 0], [5, 1]])
    true = one.frames.gather(clip, frame).frames
    fed = one._starts.first_input(clip, frame, true, 0, epoch=1, rows=[0, 1])
    assert torch.equal(fed[0], true[0, 0]) and (fed[1] == 7 / 255).all()


def test_how_a_run_is_scored_does_not_change_its_training() -> None:
    made = []
    for averages in (False, True):
        config = make_config(
            model=QUICK, teacher_forcing={"rollout_starts": 0.5}, eval={"average_flips": averages}
        )
        torch.manual_seed(0)
        model = load(config.model_name)(config.model, (3, 8, 8))
        model.average_over_flips(averages)
        starts = RolloutStarts([make_clip(12)], config, CPU)
        starts.renew(model, 1, lambda: None)
        made.append(starts.state_dict()["rollouts"])
        assert model._flips == averages
    assert torch.equal(*made)


def test_about_the_asked_share_of_rows_start_from_a_rollout_and_the_first_epoch_has_none() -> None:
    one = trainer(share=0.25, train={"batch_size": 8, "steps_per_epoch": 50})
    assert all(
        torch.equal(b.first_input, b.frames[:, 0]) for b in one._batches() if b.first_input is not None
    )
    one._starts.load_state_dict({"rollouts": torch.full((25, 3, 8, 8), 7, dtype=torch.uint8)})
    one.epoch = 1
    own = torch.cat(
        [(b.first_input == 7 / 255).flatten(1).all(1) for b in one._batches() if b.first_input is not None]
    )
    assert len(own) == 400 and 60 <= own.sum() <= 140


def test_the_first_step_is_fed_the_rollouts_frame() -> None:
    """The toy's loss, computed by hand from what its first steps are fed."""
    one = trainer(share=1.0)
    events = one.events()
    while not isinstance(next(events), EpochEvent):
        pass
    weight = copy.deepcopy(one.model.state_dict())
    event = next(events)
    assert isinstance(event, StepEvent) and event.epoch == 1 and event.terms is not None
    batch = next(one_batch for one_batch in one_epoch(one, 1))
    w, x, losses = next(iter(weight.values())), batch.first_input, []
    for k in range(1, batch.frames.shape[1]):
        x = w * (x + batch.condition[:, k]) + (k - 1) / 1000
        losses.append((x - batch.frames[:, k]).square().mean((1, 2, 3)))
    assert event.terms["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    # The rollouts differ from the true frames, so this would fail if those were fed.
    assert not torch.allclose(batch.first_input, batch.frames[:, 0], atol=0.05)


def one_epoch(one: Trainer, epoch: int) -> Any:
    """The batches of an epoch, from the rollouts in use."""
    old = one.epoch, one.step_in_epoch
    one.epoch, one.step_in_epoch = epoch, 0
    made = list(one._batches())
    one.epoch, one.step_in_epoch = old
    return made


def test_they_are_augmented_as_the_rows_frames_are() -> None:
    """With the true frames in place of rollouts, the first input is the augmented frame before."""
    one = trainer(share=1.0, train={"augment": {"flip": 0.5, "shift": [2, 2]}})
    true = torch.cat(
        [torch.from_numpy(make_clip(n, name, seed=s).frames) for n, name, s in [(11, "a", 0), (14, "b", 1)]]
    )
    one._starts.load_state_dict({"rollouts": true})
    for batch in one_epoch(one, 1):
        assert torch.equal(batch.first_input, batch.frames[:, 0])


def test_a_run_resumed_within_an_epoch_goes_on_with_the_same_rollouts() -> None:
    whole = trainer(model=None)
    expected = [event.terms for event in whole.events() if isinstance(event, StepEvent)]
    cut = trainer(model=None)
    state: dict[str, Any] = {}
    seen = []
    for event in cut.events():
        if isinstance(event, StepEvent):
            seen.append(event.terms)
            if event.epoch == 2 and event.step_in_epoch == 1:
                state = copy.deepcopy(cut.state_dict())
                break
    assert "rollouts" in state
    after = trainer(model=None)
    after.load_state_dict(state, {})
    seen += [event.terms for event in after.events() if isinstance(event, StepEvent)]
    assert seen == expected


def test_a_stop_is_heard_during_the_rollouts() -> None:
    one = trainer()
    stopping = False
    one.stop_requested = lambda: 15 if stopping else 0
    events = one.events()
    for event in events:
        if isinstance(event, EpochEvent):
            break
    stopping = True
    assert list(events) == [] and one.interrupted == 15
    assert one.epoch == 1 and one.step_in_epoch == 0 and "rollouts" not in one.state_dict()


def test_long_clips_are_rolled_out_in_parts() -> None:
    clip = make_clip(LENGTH + 3, "long")
    part = segment(clip, LENGTH)
    assert (part.name, part.n_frames, part.n_steps) == (f"long from {LENGTH}", 3, 3)
    starts = RolloutStarts([clip], make_config(teacher_forcing={"rollout_starts": 1.0}), CPU)
    starts.renew(AddingCVAE(), 1, lambda: None)
    made = starts.state_dict()["rollouts"]
    assert len(made) == LENGTH + 3
    assert torch.equal(made[LENGTH], torch.from_numpy(clip.frames[LENGTH]))


def test_every_kind_of_model_trains_from_rollouts() -> None:
    for model in ({}, QUICK):
        config = make_config(model=model, teacher_forcing={"rollout_starts": 0.5}, train={"prior_share": 0.5})
        network = load(config.model_name)(config.model, (3, 8, 8))
        one = Trainer(network, config, CPU, [make_clip(20)], [])
        assert all(
            event.terms is None or event.terms["loss"] > -100
            for event in one.events()
            if isinstance(event, StepEvent)
        )
        assert one.finished
