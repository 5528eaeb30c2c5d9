"""The training loop against its formulas written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    AddingCVAE,
    ReferenceToy,
    make_clip,
    make_config,
    make_model,
    make_trainer,
    run_events,
)
from torch import Tensor, nn

from cvaecli.api.loading import build_model
from cvaecli.config.schema import RunConfig
from cvaecli.data.clip import Clip
from cvaecli.engine import distributed
from cvaecli.engine.averaging import WeightAverage, interpolate
from cvaecli.engine.batches import Batch, batches
from cvaecli.engine.events import EpochEvent, StepEvent
from cvaecli.engine.fit import Trainer
from cvaecli.errors import CvaeError, UserError
from cvaecli.models.anchored import AnchoredCVAE
from cvaecli.models.base import Gaussian, State, Step, VideoCVAE
from cvaecli.models.pose import PoseCVAE
from cvaecli.models.reference import ReferenceCVAE
from cvaecli.schedules import learning_rate
from cvaecli.terms import TRAIN_TERMS

TOY = {"grad_clip": None, "shuffle": False, "log_every": 1}


def toy_trainer(model: VideoCVAE | None = None, **sections: dict[str, Any]) -> Trainer:
    """The adding toy on one clip, SGD without momentum."""
    train = {**TOY, **sections.pop("train", {})}
    optim = {"name": "sgd", "momentum": 0, "lr": 0.1, **sections.pop("optim", {})}
    config = make_config(train=train, optim=optim, **sections)
    return Trainer(model or AddingCVAE(), config, CPU, [make_clip(17, "a")], [])


def first_batch(trainer: Trainer) -> Batch:
    return next(batches(trainer.frames, trainer.sampler, trainer.config.train, trainer.config.seed, 0))


def first_step(trainer: Trainer) -> StepEvent:
    event = next(trainer.events())
    assert isinstance(event, StepEvent) and event.terms is not None
    return event


def by_hand(batch: Batch, feeding: str, ratio: float = 1.0) -> tuple[float, Tensor]:
    """(mean loss per frame, gradient of the summed loss) of the adding toy."""
    w = torch.tensor(0.5, requires_grad=True)
    x, losses = batch.frames[:, 0], []
    for k in range(1, batch.frames.shape[1]):
        true = batch.frames[:, k]
        x_hat = w * (x + batch.condition[:, k]) + (k - 1) / 1000
        losses.append((x_hat - true).square().mean((1, 2, 3)))
        fed = {
            "true": true,
            "own": x_hat,
            "detached": x_hat.detach(),
            "blend": ratio * true + (1 - ratio) * x_hat,
            "blend detached": ratio * true + (1 - ratio) * x_hat.detach(),
        }
        x = fed[feeding]
    stacked = torch.stack(losses, 1)  # (B, K)
    stacked.sum(1).mean().backward()
    assert w.grad is not None
    return stacked.mean().item(), w.grad


ALWAYS = {"ratio": 1.0}


@pytest.mark.parametrize(
    ("forcing", "feeding", "ratio"),
    [
        ({"ratio": 0}, "own", 1.0),
        ({"ratio": 0, "detach": "unforced"}, "detached", 1.0),
        ({"ratio": 0, "detach": "on"}, "detached", 1.0),
        (ALWAYS, "true", 1.0),
        ({"ratio": 1, "detach": "on", "noise": 0.5}, "true", 1.0),
        ({"ratio": 1, "mode": "blend"}, "blend", 1.0),
    ],
)
def test_what_a_step_is_fed(forcing: dict[str, Any], feeding: str, ratio: float) -> None:
    trainer = toy_trainer(teacher_forcing=forcing)
    batch = first_batch(trainer)
    event = first_step(trainer)
    loss, gradient = by_hand(batch, feeding, ratio)
    assert event.terms is not None and event.terms["loss"] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(trainer.model.weight.grad, gradient)
    assert event.terms["grad_norm"] == pytest.approx(abs(gradient.item()), rel=1e-5)
    assert event.forced == (1.0 if forcing["ratio"] == 1 else 0.0)


def _forced_epoch(**forcing: Any) -> tuple[Trainer, int]:
    """A trainer whose coin, with a ratio between 0 and 1, falls on forced in its first epoch."""
    for seed in range(50):
        trainer = toy_trainer(teacher_forcing=forcing)
        trainer.config = make_config(
            f"seed={seed}", train=TOY, teacher_forcing=forcing, optim={"name": "sgd", "momentum": 0}
        )
        if all(trainer._forced(0)):
            return trainer, seed
    raise AssertionError("no seed falls on forced")


@pytest.mark.parametrize(
    ("detach", "feeding"), [("off", "blend"), ("unforced", "blend"), ("on", "blend detached")]
)
def test_the_blend(detach: str, feeding: str) -> None:
    trainer, _ = _forced_epoch(ratio=0.3, mode="blend", detach=detach)
    batch = first_batch(trainer)
    event = first_step(trainer)
    loss, gradient = by_hand(batch, feeding, 0.3)
    assert event.terms is not None and event.terms["loss"] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(trainer.model.weight.grad, gradient)


def test_a_share_of_the_batch_draws_z_from_the_prior() -> None:
    seen: list[tuple[bool, int]] = []

    class Watched(PoseCVAE):
        def step(self, state, x_prev, features, noise, posterior):  # type: ignore[no-untyped-def]
            seen.append((posterior, len(x_prev)))
            assert ("mu" in features) == posterior, "rows on the prior see nothing of the target"
            return super().step(state, x_prev, features, noise, posterior)

    def terms(share: float) -> dict[str, float]:
        train = {"batch_size": 4, "window": 3, "prior_share": share}
        trainer = make_trainer(make_config(train=train), [make_clip(24)])
        trainer.model.__class__ = Watched
        seen.clear()
        event = first_step(trainer)
        assert event.terms is not None
        return event.terms

    none, some = terms(0.0), terms(0.25)
    assert set(seen) == {(True, 3), (False, 1)}
    assert some["kl"] == pytest.approx(none["kl"], rel=0.2), "the mean over the rows that have a posterior"


@pytest.mark.parametrize("kind", [ReferenceCVAE, AnchoredCVAE])
def test_rows_with_and_without_a_posterior_in_one_pass_equal_two(
    kind: type[ReferenceCVAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = kind is ReferenceCVAE
    settings = make_config(
        f"model.name={'reference' if parallel else 'anchored'}",
        *("model.widths=[16,16]", "model.encoder_blocks=[0,1]", "model.decoder_blocks=[0]"),
        train={"batch_size": 8, "window": 2 if parallel else 4, "prior_share": 0.25},
        teacher_forcing=None if parallel else {"ratio": 0.0, "noise": 0.1},
    )

    def step(mixes: bool) -> tuple[dict[str, float], torch.Tensor, list[int]]:
        monkeypatch.setattr(kind, "mixes", mixes)
        trainer = Trainer(build_model(settings, (3, 8, 8)), settings, CPU, [make_clip(24)], [])
        rows: list[int] = []
        with torch.no_grad():  # some weights start as zeros: give every one a say
            for n, parameter in enumerate(trainer.model.parameters()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)))
        trainer.model.middle.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))  # type: ignore[union-attr]
        terms = first_step(trainer).terms
        assert terms is not None
        grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        return terms, torch.cat(grads), rows

    (one, gradient, rows), (two, other, apart) = step(True), step(False)
    assert set(rows) == {8} and set(apart) == {6, 2} and len(apart) == 2 * len(rows)
    assert one == pytest.approx(two, rel=1e-5)
    torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_noise_falls_on_fed_back_frames_only() -> None:
    def loss(noise: float, ratio: float, window: int) -> float:
        trainer = toy_trainer(
            teacher_forcing={"ratio": ratio, "noise": noise}, train={"window": window, "batch_size": 1}
        )
        terms = first_step(trainer).terms
        assert terms is not None
        return terms["loss"]

    assert loss(0.5, ratio=0, window=4) > loss(0, ratio=0, window=4) + 0.01
    assert loss(0.5, ratio=1, window=4) == loss(0, ratio=1, window=4), "true frames stay true"
    assert loss(0.5, ratio=0, window=2) == loss(0, ratio=0, window=2), "the given frame stays true"


def test_a_coin_a_step_feeds_each_step_as_it_fell() -> None:
    """x_hat of a toy that copies its input: the loss of step k says what it was fed."""
    forcing = {"ratio": 0.5, "coin": "step"}
    trainer = toy_trainer(teacher_forcing=forcing, train={"window": 12, "batch_size": 1})
    batch, coins = first_batch(trainer), trainer._forced(0)
    assert len(coins) == 11 and 0 < sum(coins[1:]) < 10
    event = first_step(trainer)
    x, losses = batch.frames[:, 0], []
    for k in range(11):
        x = batch.frames[:, k] if coins[k] or k == 0 else x
        x = 0.5 * (x + batch.condition[:, k + 1]) + k / 1000
        losses.append((x - batch.frames[:, k + 1]).square().mean())
    assert event.terms is not None
    assert event.terms["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert event.forced == pytest.approx(sum(coins) / 11)


def test_several_given_frames_are_not_predicted() -> None:
    trainer = toy_trainer(data={"n_past": 3}, train={"window": 6}, teacher_forcing={"ratio": 0})
    batch = first_batch(trainer)
    loss, gradient = by_hand(Batch(batch.frames[:, 2:], batch.condition[:, 2:]), "own")
    event = first_step(trainer)
    assert event.terms is not None and event.terms["loss"] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(trainer.model.weight.grad, gradient)


class _Counting(AddingCVAE):
    """Records the calls of ``unroll``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def unroll(self, *args: Any, **kwargs: Any) -> tuple[Step, State]:
        self.calls.append("unroll")
        return super().unroll(*args, **kwargs)


@pytest.mark.parametrize(
    ("forcing", "calls"), [(ALWAYS, ["unroll"]), ({"ratio": 0}, []), ({"ratio": 1, "mode": "blend"}, [])]
)
def test_known_inputs_go_through_unroll_once(forcing: dict[str, Any], calls: list[str]) -> None:
    model = _Counting()
    first_step(toy_trainer(model, teacher_forcing=forcing))
    assert model.calls == calls


@pytest.mark.parametrize("settings", [{}, {"posterior": "fed"}, {"batch_norm": "pooled"}])
def test_batched_teacher_forcing_equals_the_loop(settings: dict[str, Any]) -> None:
    """Ratio 1 takes ``unroll``; a blend at ratio 1 is the same input, step by step."""
    gradients, terms, states = [], [], []
    for mode in ("replace", "blend"):
        trainer = make_trainer(
            make_config(
                model={**settings}, teacher_forcing={"ratio": 1, "mode": mode}, train={"log_every": 1}
            )
        )
        terms.append(first_step(trainer).terms)
        gradients.append([p.grad for p in trainer.model.parameters()])
        states.append(dict(trainer.model.named_buffers()))
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)
    for batched, looped in zip(*gradients, strict=True):
        torch.testing.assert_close(batched, looped, atol=1e-6, rtol=1e-4)
    for name, buffer in states[0].items():
        torch.testing.assert_close(buffer, states[1][name])


def test_a_parallel_model_trains_without_teacher_forcing() -> None:
    config = make_config(train={**TOY, "window": 3, "batch_size": 2}, kl={"schedule": "none", "stop": 0})
    config = config.model_copy(update={"teacher_forcing": None})
    trainer = Trainer(ReferenceToy(), config, CPU, [make_clip(9, "a"), make_clip(9, "b", seed=1)], [])
    steps, _ = run_events(trainer)
    assert all(event.tfr == 0 and event.forced == 0 for event in steps)
    assert trainer.model.weight.item() != 0.5


# --- the loss -----------------------------------------------------------------------------------------


class _WithKL(AddingCVAE):
    """Posterior N(m, 1) against N(0, 1) in two dimensions: KL m^2 a frame."""

    def __init__(self, m: float, logvar: float = 0.0) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(m))
        self.logvar = logvar

    def step(self, *args: Any, **kwargs: Any) -> tuple[Step, State]:
        step, state = super().step(*args, **kwargs)
        (p,) = step.p
        return step._replace(q=(Gaussian(p.mu + self.m, p.logvar + self.logvar),)), state


@pytest.mark.parametrize(
    ("kl", "gradient"),
    [
        ({"weight": 1}, 2 * 0.6),  # d/dm of m^2
        ({"weight": 0.01}, 0.01 * 2 * 0.6),
        ({"weight": 1, "reduction": "mean"}, 0.6),  # of 2 dimensions
        ({"weight": 1, "reduction": "pixel"}, 2 * 0.6 / (3 * 8 * 8)),
        ({"weight": 1, "free_bits": 0.3}, 2 * 0.6),
        ({"weight": 1, "free_bits": 0.4}, 0.0),
        ({"weight": 1, "stop": 0.25}, 0.25 * 2 * 0.6),
    ],
)
def test_the_kl_terms_weight(kl: dict[str, Any], gradient: float) -> None:
    """The loss sums over the 3 predicted frames of the window, as the course does."""
    trainer = toy_trainer(_WithKL(0.6), kl={"schedule": "none", **kl})
    terms = first_step(trainer).terms
    assert trainer.model.m.grad.item() == pytest.approx(3 * gradient, abs=1e-6)
    assert terms is not None and terms["kl"] == pytest.approx(0.36, rel=1e-5)


@pytest.mark.parametrize("size", [8, 16])
def test_a_weight_per_pixel_is_the_lower_bound_at_every_frame_size(size: int) -> None:
    """Per-pixel reconstruction and KL / (C H W) are the lower bound divided by the number of pixel values."""
    config = make_config(
        data={"height": size, "width": size},
        train={**TOY, "recon": "optimal_sigma"},
        kl={"schedule": "none", "weight": 1, "reduction": "pixel"},
    )
    trainer = Trainer(_WithKL(0.6), config, CPU, [make_clip(17, "a", size=size)], [make_clip(6, size=size)])
    terms = first_step(trainer).terms
    assert terms is not None and terms["kl"] == pytest.approx(0.36, rel=1e-5)
    bound = 3 * size * size * terms["recon"] + 0.36  # nats a frame, constants left out
    assert 3 * size * size * terms["loss"] == pytest.approx(bound, rel=1e-5)
    _, epochs = run_events(trainer)
    row = epochs[-1].row
    assert row["val/loss"] == pytest.approx(row["val/recon"] + row["val/kl"] / (3 * size * size), rel=1e-6)


MOVING = {"schedule": "monotonic", "ratio": 1.0, "weight": 0.1}  # beta moves with every step


@pytest.mark.parametrize(
    ("kl", "train"),
    [
        (MOVING, {}),
        (MOVING, {"log_every": 1}),
        ({**MOVING, "reduction": "mean"}, {}),
        ({**MOVING, "reduction": "pixel", "weight": 100}, {}),
        ({**MOVING, "free_bits": 5.0}, {}),
        (MOVING, {"batch_size": 4, "prior_share": 0.25}),
        (MOVING, {"batch_size": 4, "accumulate": 2, "time_reduction": "mean"}),
    ],
)
def test_the_loss_is_reconstruction_and_weighted_kl(kl: dict[str, Any], train: dict[str, Any]) -> None:
    """In every row, of training and of validation, whatever moves within it."""
    settings = {"epochs": 2, "batch_size": 2, "window": 3, "log_every": 3, **train}
    steps, epochs = run_events(make_trainer(make_config(train=settings, kl=kl)))
    rows = [event.terms for event in steps if event.terms]
    rows += [{k.removeprefix("train/"): v for k, v in event.row.items()} for event in epochs]  # type: ignore[misc]
    rows += [{k.removeprefix("val/"): v for k, v in event.row.items()} for event in epochs]  # type: ignore[misc]
    assert any(row["kl_weighted"] > 1e-3 for row in rows)
    for row in rows:
        assert row["loss"] == pytest.approx(row["recon"] + row["kl_weighted"], rel=1e-6)


def test_the_weighted_kl_is_its_formula() -> None:
    """beta * weight * mean(max(kl, free bits)); in validation with the beta of the last step."""
    kl = {"schedule": "values", "values": [0.5, 1.0], "weight": 0.1, "free_bits": 0.5}
    trainer = toy_trainer(_WithKL(0.6), kl=kl, train={"epochs": 2})
    terms = first_step(trainer).terms
    assert terms is not None and terms["kl"] == pytest.approx(0.36, rel=1e-5)
    assert terms["kl_weighted"] == pytest.approx(0.5 * 0.1 * 0.5, rel=1e-5), "at least the free bits"
    trainer = make_trainer(make_config(kl={**kl, "free_bits": 3.0}))
    _, epochs = run_events(trainer)
    for event, beta in zip(epochs, (0.5, 1.0), strict=True):
        assert event.evaluation is not None
        curves = [np.maximum(clip.kl, 3.0).mean() for clip in event.evaluation.clips]
        assert event.row["val/kl_weighted"] == pytest.approx(beta * 0.1 * np.mean(curves), rel=1e-6)
        assert event.row["val/kl"] == pytest.approx(np.mean([c.kl.mean() for c in event.evaluation.clips]))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_prior_share_does_not_change_the_ratio_of_reconstruction_to_kl(share: float) -> None:
    """Recon : KL is 1 : weight on the rows that have a KL term, whatever the share of rows without one."""
    train = {"batch_size": 4, "prior_share": share, "window": 4}
    trainer = toy_trainer(_WithKL(0.6), kl={"schedule": "none", "weight": 0.1}, train=train)
    terms = first_step(trainer).terms
    posterior = 1 - share  # of the rows, so of the sum that is divided by all rows
    assert trainer.model.m.grad.item() == pytest.approx(3 * posterior * 0.1 * 2 * 0.6, rel=1e-5)
    assert terms is not None and terms["kl"] == pytest.approx(0.36, rel=1e-5), "nats, over the posterior rows"
    assert terms["loss"] == pytest.approx(terms["recon"] + posterior * 0.1 * 0.36, rel=1e-5)


def test_mean_over_time_divides_the_gradient_not_the_report() -> None:
    both = [toy_trainer(train={"time_reduction": kind}) for kind in ("sum", "mean")]
    terms = [first_step(trainer).terms for trainer in both]
    assert terms[0] is not None and terms[1] is not None and terms[0]["loss"] == terms[1]["loss"]
    torch.testing.assert_close(both[0].model.weight.grad, 3 * both[1].model.weight.grad)


# --- the step -----------------------------------------------------------------------------------------


def test_the_gradients_norm_is_limited_and_reported_before() -> None:
    trainer = make_trainer(make_config(train={"grad_clip": 1e-3, "log_every": 1}))
    terms = first_step(trainer).terms
    gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    assert gradients.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert terms is not None and terms["grad_norm"] > 1e-2


def test_the_learning_rate_of_the_schedule_is_applied() -> None:
    trainer = toy_trainer(
        train={"epochs": 3, "window": 4, "batch_size": 2},
        optim={"schedule": "multistep", "milestones": [1, 2], "gamma": 0.5, "warmup_steps": 1, "lr": 0.2},
    )
    before, total = 0.5, trainer.total_steps
    for event in trainer.events():
        if isinstance(event, StepEvent):
            expected = learning_rate(trainer.config.optim, event.step - 1, event.epoch, total_steps=total)
            assert event.lr == expected
            after, gradient = trainer.model.weight.item(), trainer.model.weight.grad.item()
            assert after == pytest.approx(before - expected * gradient, rel=1e-5)
            before = after
    assert total == 6


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimiser_follows_torchs(name: str) -> None:
    trainer = toy_trainer(optim={"name": name, "lr": 0.01, "weight_decay": 0.1, "momentum": 0.5})
    w = nn.Parameter(torch.tensor(0.5))
    reference: torch.optim.Optimizer = {
        "adam": lambda: torch.optim.Adam([w], 0.01, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW([w], 0.01, weight_decay=0.1),
        "sgd": lambda: torch.optim.SGD([w], 0.01, momentum=0.5, weight_decay=0.1),
    }[name]()
    for event in trainer.events():
        if isinstance(event, StepEvent):
            w.grad = trainer.model.weight.grad.clone()
            reference.step()
    torch.testing.assert_close(trainer.model.weight, w)


def test_a_training_is_a_function_of_its_seed() -> None:
    def weights(seed: int) -> Tensor:
        trainer = make_trainer(make_config(f"seed={seed}", teacher_forcing={"ratio": 0.5, "noise": 0.1}))
        run_events(trainer)
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_the_random_numbers_of_others_do_not_matter() -> None:
    results = []
    for noise in (0, 5):
        trainer = make_trainer()
        torch.rand(noise)
        run_events(trainer)
        results.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- averages of weights ------------------------------------------------------------------------------


def test_the_moving_average_is_its_formula() -> None:
    trainer = toy_trainer(train={"ema": 0.3, "epochs": 3})
    average = 0.5
    for n, event in enumerate(e for e in trainer.events() if isinstance(e, StepEvent)):
        assert event.step == n + 1
        decay = min(0.3, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * trainer.model.weight.item()
        assert trainer.trained.weight.item() == pytest.approx(average, rel=1e-5)
    assert trainer.trained is not trainer.model


def test_the_moving_average_takes_buffers_and_counters() -> None:
    model = make_model()
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(2)
    average.update(1000)
    fresh = make_model().state_dict()
    for name, value in average.model.state_dict().items():
        moved = 1 if value.is_floating_point() else 2
        torch.testing.assert_close(value, fresh[name] + moved)


def test_interpolation_is_its_formula() -> None:
    model = nn.Module()
    start = torch.tensor([3.0, 4.0])
    model.turned = nn.Parameter(torch.tensor([4.0, 3.0]))  # cos = 24 / 25
    model.opposite = nn.Parameter(-start)
    model.was_zero = nn.Parameter(torch.tensor([1.0, 2.0]))
    model.same = nn.Parameter(2 * start)
    model.register_buffer("counted", torch.tensor([7.0]))
    initial = {"turned": start, "opposite": start, "was_zero": torch.zeros(2), "same": start}
    interpolate(model, initial)
    alpha = 2 * (24 / 25) / (1 + 24 / 25)
    torch.testing.assert_close(model.turned, alpha * torch.tensor([4.0, 3.0]) + (1 - alpha) * start)
    torch.testing.assert_close(model.opposite, start)
    torch.testing.assert_close(model.was_zero, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(model.same, 2 * start)
    assert model.counted.item() == 7


def test_interpolation_happens_every_so_many_epochs() -> None:
    trainer = make_trainer(make_config(train={"epochs": 4, "interpolate_every": 2}))
    plain = make_trainer(make_config(train={"epochs": 4}))
    same = []
    for event, other in zip(trainer.events(), plain.events(), strict=True):
        if isinstance(event, EpochEvent):
            assert isinstance(other, EpochEvent)
            pairs = zip(trainer.model.parameters(), plain.model.parameters(), strict=True)
            same.append(all(torch.equal(a, b) for a, b in pairs))
            assert all(p.requires_grad for p in trainer.model.parameters())
    assert same[:2] == [True, False]


# --- events -------------------------------------------------------------------------------------------


def test_an_epochs_row_is_the_mean_of_its_steps() -> None:
    every_step = make_trainer(make_config(train={"log_every": 1, "batch_size": 1}))
    steps, rows_of_every_step = run_events(every_step)
    fewer = (make_trainer(make_config(train={"log_every": n, "batch_size": 1})) for n in (2, 5))
    for epochs in (rows_of_every_step, *(run_events(trainer)[1] for trainer in fewer)):
        for event in epochs:
            mine = [step.terms for step in steps if step.epoch == event.epoch]
            assert len(mine) == 4
            for name in TRAIN_TERMS:
                mean = sum(terms[name] for terms in mine if terms) / len(mine)
                assert event.row[f"train/{name}"] == pytest.approx(mean, rel=1e-9)
            assert event.row["step"] == 4 * (event.epoch + 1)


def test_losses_are_fetched_only_when_logged() -> None:
    steps, _ = run_events(make_trainer(make_config(train={"log_every": 3, "batch_size": 1})))
    assert [event.step for event in steps if event.terms] == [1, 3, 4, 6, 8]
    assert [event.step_in_epoch for event in steps] == [1, 2, 3, 4] * 2
    assert all((event.frames_per_s is None) == (event.terms is None) for event in steps)


def test_validations_and_the_best_of_them() -> None:
    config = make_config(train={"epochs": 5}, eval={"every": 2})
    _, epochs = run_events(make_trainer(config))
    assert [event.evaluation is not None for event in epochs] == [False, True, False, True, True]
    best, seen = [], -math.inf
    for event in epochs:
        value = event.row.get("val/psnr")
        best.append(value is not None and value > seen)
        seen = max(seen, value if value is not None else -math.inf)
    assert [event.best for event in epochs] == best


def test_a_validation_with_nan_frames_is_never_the_best() -> None:
    """It has a finite PSNR: such a frame is scored as black."""

    class RunsOff(AddingCVAE):
        broken = True

        def step(self, *args: Any, **kwargs: Any) -> tuple[Step, State]:
            step, state = super().step(*args, **kwargs)
            if self.broken and not self.training:
                step = step._replace(x_hat=step.x_hat * math.nan)
            return step, state

    model = RunsOff()
    config = make_config(train={**TOY, "epochs": 2}, optim={"lr": 1e-4})
    trainer = Trainer(model, config, CPU, [make_clip(17, "a")], [make_clip(6, "v")])
    epochs = []
    for event in trainer.events():
        if isinstance(event, EpochEvent):
            epochs.append(event)
            model.broken = False
    assert [event.best for event in epochs] == [False, True]
    assert [event.row["val/nan_frames"] for event in epochs] == [5, 0]
    assert math.isfinite(epochs[0].row["val/psnr"] or math.nan)
    assert trainer.best_psnr == epochs[1].row["val/psnr"]


def test_max_steps_stops_within_an_epoch_and_moves_no_schedule() -> None:
    config = make_config(train={"epochs": 3, "batch_size": 1, "max_steps": 6}, kl={"schedule": "monotonic"})
    free = make_config(train={"epochs": 3, "batch_size": 1}, kl={"schedule": "monotonic"})
    trainer, other = make_trainer(config), make_trainer(free)
    steps, epochs = run_events(trainer)
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event.complete for event in epochs] == [True, False] and epochs[-1].evaluation is not None
    longer = [event for event in other.events() if isinstance(event, StepEvent)]
    assert [event.beta for event in steps] == [event.beta for event in longer[:6]]
    assert trainer.finished and trainer.total_steps == 12


def test_a_cut_epochs_row_holds_the_steps_that_were_done() -> None:
    every_step = make_config(train={"log_every": 1, "batch_size": 1, "max_steps": 7})
    steps, _ = run_events(make_trainer(every_step))
    _, epochs = run_events(make_trainer(make_config(train={"log_every": 5, "batch_size": 1, "max_steps": 7})))
    losses = [event.terms["loss"] for event in steps[4:] if event.terms]
    assert len(losses) == 3
    assert epochs[-1].row["train/loss"] == pytest.approx(sum(losses) / 3, rel=1e-9)


def test_max_minutes_stops() -> None:
    trainer = make_trainer(make_config(train={"epochs": 50, "max_minutes": 1e-7}))
    steps, epochs = run_events(trainer)
    assert len(steps) == 1 and len(epochs) == 1 and trainer.finished


def test_no_mode_leaks_to_the_consumer() -> None:
    for _ in make_trainer().events():
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")


# --- which batches ------------------------------------------------------------------------------------


def test_the_pose_model_may_train_on_pairs() -> None:
    """The given frame then comes from anywhere in the clip, so that copying it is of no use."""

    def trainer(sampling: str | None) -> Trainer:
        train = {"sampling": sampling, "window": 2, "batch_size": 8, "epochs": 4, "shuffle": False}
        return make_trainer(make_config(train=train), [make_clip(40)])

    def distances(one: Trainer) -> set[int]:
        frames = [frame for epoch in range(4) for _, frame in one.sampler.epoch(epoch)]
        return {last - first for pairs in frames for first, last in pairs.tolist()}

    assert distances(trainer(None)) == distances(trainer("windows")) == {1}
    assert len(distances(trainer("pairs"))) > 20
    steps, _ = run_events(trainer("pairs"))
    assert len(steps) == 4 * 40 / 8, "every frame of the clip is predicted once an epoch"


def test_a_model_of_pairs_may_train_on_windows() -> None:
    config = make_config(train={**TOY, "sampling": "windows", "window": 2}, teacher_forcing=None)
    trainer = Trainer(ReferenceToy(), config, CPU, [make_clip(20)], [])
    assert all((frame[:, 1] - frame[:, 0] == 1).all() for _, frame in trainer.sampler.epoch(0))


# --- what goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "term"),
    [
        (AddingCVAE(math.nan), "recon"),
        (_WithKL(0.0, logvar=200.0), "kl"),
    ],
)
def test_a_loss_that_is_not_finite_names_its_term_and_step(model: VideoCVAE, term: str) -> None:
    trainer = toy_trainer(model, kl={"schedule": "none"}, train={"max_skips": 0})
    with pytest.raises(CvaeError) as caught:
        run_events(trainer)
    assert f"{term} is" in caught.value.message and "step 1 " in caught.value.message and caught.value.hint
    assert caught.value.exit_code == 1


def test_weights_to_blend_with_are_not_made_up() -> None:
    state = make_trainer(make_config(train={"init": "x.pt"})).state_dict()
    blending = make_trainer(make_config(train={"init": "x.pt", "interpolate_every": 1}))
    with pytest.raises(UserError, match=r"train\.interpolate_every: the checkpoint lacks"):
        blending.load_state_dict(state, {})


@pytest.mark.parametrize("augment", [{"flip": 0.5}, {"shift": [0, 1]}, {"zoom": 0.1}])
def test_augmentation_is_refused_where_conditions_are_vectors(augment: dict[str, Any]) -> None:
    """A mirrored or shifted picture would keep the actions and positions of the real one."""
    still = make_clip(9)
    vectors = Clip("arm", still.frames, np.zeros((9, 7), dtype=np.float32))
    config = make_config(train={**TOY, "augment": augment})
    with pytest.raises(UserError, match=r"train\.augment\.(flip|shift|zoom)") as caught:
        Trainer(AddingCVAE(), config, CPU, [vectors], [])
    assert caught.value.hint
    Trainer(AddingCVAE(), config, CPU, [still], [])
    Trainer(AddingCVAE(), make_config(train=TOY), CPU, [vectors], [])


@pytest.mark.parametrize("log_every", [1, 4])
def test_the_first_broken_step_is_named_whenever_it_is_noticed(log_every: int) -> None:
    trainer = toy_trainer(train={"log_every": log_every, "window": 2, "batch_size": 1, "max_skips": 0})
    with pytest.raises(CvaeError, match="at step 3 "):
        for event in trainer.events():
            if isinstance(event, StepEvent) and event.step == 2:
                with torch.no_grad():
                    trainer.model.weight.fill_(math.inf)


def test_a_broken_state_is_not_given_out() -> None:
    trainer = toy_trainer(train={"log_every": 9, "window": 2, "batch_size": 1})
    events = trainer.events()
    next(events)
    with torch.no_grad():
        trainer.model.weight.fill_(math.nan)
    next(events)
    with pytest.raises(CvaeError):
        trainer.state_dict()


# --- it learns ----------------------------------------------------------------------------------------


def _overfit() -> RunConfig:
    return make_config(
        model={"frame_dim": 16, "fusion_dim": 32},
        train={"epochs": 60, "batch_size": 1, "window": 4, "grad_clip": 1.0},
        optim={"lr": 5e-3},
        kl={"schedule": "none", "stop": 1e-4},
        teacher_forcing={"ratio": 0},
        eval={"every": 0},
    )


def test_a_tiny_clip_can_be_overfitted() -> None:
    clip = make_clip(4, "one")
    _, epochs = run_events(make_trainer(_overfit(), [clip], [clip]))
    first, last = epochs[0].row, epochs[-1].row
    assert first["train/recon"] is not None and last["train/recon"] is not None
    assert last["train/recon"] < first["train/recon"] / 20
    assert last["val/psnr"] is not None and last["val/psnr"] > 20


# --- the clock ----------------------------------------------------------------------------------------


def test_the_time_is_that_of_batches_steps_and_waiting_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From asking for a batch to the end of a report, which waits for the device; not that of who logs."""
    now = 0.0

    def takes(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*arguments)

        return slow

    monkeypatch.setattr(distributed, "time", SimpleNamespace(perf_counter=lambda: now))
    trainer = make_trainer(make_config(train={"epochs": 1, "steps_per_epoch": 5, "log_every": 2}), val=[])
    drawn = trainer._batches
    monkeypatch.setattr(trainer, "_batches", lambda: map(takes(2, lambda batch: batch), drawn()))
    monkeypatch.setattr(trainer, "_train_step", takes(3, trainer._train_step))
    monkeypatch.setattr(trainer._terms, "_fetch", takes(50, trainer._terms._fetch))
    seconds, rates, rows = [], [], []
    for event in trainer.events():
        seconds.append(trainer.seconds)
        now += 1000  # writing a file
        if isinstance(event, StepEvent):
            rates.append(event.frames_per_s)
        else:
            rows.append(event.row)
    # Reports after the steps 1, 2, 4 and 5; the epoch's row waits once more.
    assert seconds == [55, 110, 115, 170, 225, 275] and rows[0]["time"] == 275
    frames = 2 * 3  # of a step
    assert rates == [frames / 55, frames / 55, None, 2 * frames / 60, frames / 55]
