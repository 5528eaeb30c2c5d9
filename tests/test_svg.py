"""The SVG model beyond its numbers: steps, causality, state, burn-in, switches, and a tiny training."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import BASE, CPU, predicted, run_events
from torch import Tensor

from cvaecli import models
from cvaecli.config import loading as configs
from cvaecli.data.clip import Clip
from cvaecli.engine.batches import batches
from cvaecli.engine.evaluate import evaluate
from cvaecli.engine.fit import Trainer
from cvaecli.engine.rollout import predict
from cvaecli.errors import UserError
from cvaecli.models.base import Features, Gaussian, Step, VideoCVAE, join_steps, slice_time
from cvaecli.models.svg.backbones import Layer
from cvaecli.models.svg.model import MODEL, SVG, SVGConfig, SVGState
from cvaecli.objective import kl_divergence

SMALL: dict[str, Any] = {"width": 4, "g_dim": 8, "z_dim": 4, "rnn_size": 8}
D, P, K, SIZE = 7, 2, 3, (32, 32)
B = 3
Clips = tuple[Tensor, Tensor, list[Tensor]]


def build(**settings: Any) -> SVG:
    torch.manual_seed(0)
    model = SVG(SVGConfig(**(SMALL | settings)), (D,)).eval()
    # As initialised, everything is so small that nothing depends on anything.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "modulate" not in name:
                p.mul_(1 / (p[0].numel() ** 0.5 * p.std().clamp(min=1e-6)))
    return model


def clip(model: SVG, size: tuple[int, int] = SIZE, n: int = P + K, seed: int = 1) -> Clips:
    """Frames, conditions and noise of n steps, ``[B, n, ...]`` each."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(B, n, 3, *size, generator=generator)
    condition = torch.randn(B, n, D, generator=generator)
    shapes = model.noise_shapes(size)
    return frames, condition, [torch.randn(B, n, *shape, generator=generator) for shape in shapes]


def forced(model: SVG, data: Clips, posterior: bool = True, n_past: int = P, loop: bool = False) -> Step:
    """The steps after the past ones, each fed the true frame."""
    frames, condition, noise = data
    state = model.start(frames[:, :n_past], condition[:, :n_past])
    features = model.encode(condition[:, n_past:], frames[:, n_past:] if posterior else None)
    unroll = VideoCVAE.unroll if loop else SVG.unroll
    later = [n[:, n_past:] for n in noise]
    return unroll(model, state, frames[:, n_past - 1 : -1], features, later, posterior)[0]


def rollout(model: SVG, data: Clips, n_past: int = P) -> Step:
    frames, condition, noise = data
    state = model.start(frames[:, :n_past], condition[:, :n_past])
    later = [n[:, n_past:] for n in noise]
    return predict(model, state, frames[:, n_past - 1], condition[:, n_past:], later)[0]


def assert_close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def edited(data: Clips, frame: int | None = None, condition: int | None = None) -> Clips:
    frames, conditions = data[0].clone(), data[1].clone()
    if frame is not None:
        frames[:, frame] = 1 - frames[:, frame]
    if condition is not None:
        conditions[:, condition] += 1
    return frames, conditions, data[2]


VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm": "group", "prior": "fixed", "predictor_layers": 1, "posterior_layers": 2},
    {"backbone": "dcgan", "prior_layers": 2},
    {"last_frame_skip": True, "levels": [2]},
    {"levels": [3, 2], "conditional_conv": True},
    {"levels": [2], "prior": "fixed", "backbone": "dcgan", "legacy_skip": True},
]


def test_follows_the_protocol() -> None:
    assert MODEL is SVG and issubclass(SVG, VideoCVAE) and SVG.Config is SVGConfig
    assert models.load("svg") is SVG
    assert all(field.description for key, field in SVGConfig.model_fields.items() if key != "name")
    assert SVG.eval is torch.nn.Module.eval and SVG.train is torch.nn.Module.train


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_shapes(settings: dict[str, Any]) -> None:
    model = build(**settings)
    for posterior in (True, False):
        data = clip(model)
        step = forced(model, data, posterior)
        assert step.x_hat.shape == (B, K, 3, *SIZE) and step.x_hat.min() >= 0 and step.x_hat.max() <= 1
        assert len(step.p) == len(data[2]) and len(step.q) == (len(data[2]) if posterior else 0)
        for gaussian, noise in [*zip(step.p, data[2], strict=True), *zip(step.q, data[2], strict=False)]:
            assert gaussian.mu.shape == gaussian.logvar.shape == (B, K, *noise.shape[2:])


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize(("training", "posterior"), list(product([False, True], repeat=2)))
def test_unroll_equals_the_loop(settings: dict[str, Any], training: bool, posterior: bool) -> None:
    model = build(**settings).train(training)
    data = clip(model)
    assert_close(forced(model, data, posterior), forced(model, data, posterior, loop=True))


@pytest.mark.parametrize("settings", [{}, {"norm": "group", "levels": [2]}])
def test_unroll_gives_the_loops_gradients(settings: dict[str, Any]) -> None:
    gradients = []
    for loop in (False, True):
        model = build(**settings).train()
        step = forced(model, clip(model), loop=loop)
        kl = sum(kl_divergence(q, p).mean() for q, p in zip(step.q, step.p, strict=True))
        (step.x_hat.square().mean() + kl).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_true_frames_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(levels=[2]).train()
    frames, condition, noise = clip(model)
    shared = forced(model, (frames, condition, noise))
    seen: list[int] = []
    see = SVG._see
    monkeypatch.setattr(SVG, "_see", lambda self, x: seen.append(x.shape[1]) or see(self, x))
    forced(model, (frames, condition, noise))
    assert seen == [P, K, 1]
    state = model.start(frames[:, :P], condition[:, :P])
    features = model.encode(condition[:, P:], frames[:, P:])
    copied = frames[:, P - 1 : -1].clone()  # other memory: nothing tells that it is the targets
    unshared, _ = model.unroll(state, copied, features, [n[:, P:] for n in noise], True)
    assert seen == [P, K, 1, P, K, K]
    assert_close(shared, unshared)


def test_batch_norm_pooled_mixes_the_steps() -> None:
    outputs = {}
    for kind, training in product(("per_step", "pooled"), (False, True)):
        model = build(batch_norm=kind).train(training)
        frames, condition, noise = clip(model)
        outputs[kind, training] = forced(
            model, (frames * torch.linspace(0.1, 1, 5).view(5, 1, 1, 1), condition, noise)
        ).x_hat
    assert torch.equal(outputs["per_step", False], outputs["pooled", False])
    assert (outputs["per_step", True] - outputs["pooled", True]).abs().max() > 0.01


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_rows_of_a_batch_are_independent(settings: dict[str, Any]) -> None:
    model = build(**settings)
    frames, condition, noise = clip(model)
    both = rollout(model, (frames, condition, noise))
    for b in range(B):
        row = slice(b, b + 1)
        alone = rollout(model, (frames[row], condition[row], [n[row] for n in noise]))
        assert_close(alone.x_hat, both.x_hat[row])


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_nothing_changes_earlier_frames(settings: dict[str, Any]) -> None:
    model = build(**settings)
    data = clip(model)
    before, after = rollout(model, data), rollout(model, edited(data, condition=P + 1))
    assert torch.equal(before.x_hat[:, :1], after.x_hat[:, :1])
    assert all((before.x_hat[:, k] - after.x_hat[:, k]).abs().max() > 1e-5 for k in (1, 2))


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_posterior_sees_its_target_and_prior_does_not(settings: dict[str, Any]) -> None:
    model = build(**settings)
    data = clip(model)
    before, after = forced(model, data), forced(model, edited(data, frame=P + 1))
    assert torch.equal(before.x_hat[:, 0], after.x_hat[:, 0])
    for q, changed in zip(before.q, after.q, strict=True):
        assert torch.equal(q.mu[:, 0], changed.mu[:, 0]) and not torch.equal(q.mu[:, 1], changed.mu[:, 1])
    assert torch.equal(before.p[0].mu[:, :2], after.p[0].mu[:, :2])  # the last one is fed the edited frame
    if model.prior is not None:
        assert not torch.equal(before.p[0].mu[:, 2], after.p[0].mu[:, 2])


@torch.no_grad()
def test_no_state_leaks_between_calls() -> None:
    model = build(levels=[2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = {name: set(vars(module)) for name, module in model.named_modules()}
    first = rollout(model, clip(model))
    rollout(model, clip(model, seed=2))
    forced(model, clip(model, seed=3))
    assert_close(first, rollout(model, clip(model)))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert modules == {name: set(vars(module)) for name, module in model.named_modules()}
    assert not [m for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]


@torch.no_grad()
def test_learned_prior_at_zero_is_the_fixed_one() -> None:
    learned, fixed = build(prior="learned"), build(prior="fixed")
    assert fixed.prior is None and learned.prior is not None
    fixed.load_state_dict(learned.state_dict(), strict=False)
    for net in (learned.prior.mu_net, learned.prior.logvar_net):
        net.weight.zero_(), net.bias.zero_()
    data = clip(learned)
    for run in (rollout, forced):
        assert_close(run(learned, data), run(fixed, data))
    kl = [kl_divergence(s.q[0], s.p[0]) for s in (forced(learned, data), forced(fixed, data))]
    assert_close(*kl)


@torch.no_grad()
def test_the_posteriors_state_stays_without_a_target() -> None:
    model = build()
    frames, condition, noise = clip(model)
    start: SVGState = model.start(frames[:, :P], condition[:, :P])
    features = slice_time(model.encode(condition), P)
    _, state = model.step(start, frames[:, P - 1], features, [n[:, P] for n in noise], posterior=False)
    assert state.posterior is start.posterior
    assert not torch.equal(state.prior[0][0], start.prior[0][0])
    assert not torch.equal(state.predictor[0][0], start.predictor[0][0])


# Past frames.


@pytest.mark.parametrize("n_past", [1, 2, 3])
@pytest.mark.parametrize("levels", [[], [2]])
@torch.no_grad()
def test_burn_in_is_steps_on_true_frames(n_past: int, levels: list[int]) -> None:
    model = build(levels=levels)
    frames, condition, noise = clip(model)
    drawn = [n[:, 1:n_past] for n in noise]
    given, state = model.burn_in(frames[:, :n_past], condition[:, :n_past], drawn)
    stepped = model.start(frames[:, :1], condition[:, :1])
    features: Features = model.encode(condition[:, 1:], frames[:, 1:])
    predicted = []
    for t in range(1, n_past):
        one = slice_time(features, t - 1)
        step, stepped = model.step(stepped, frames[:, t - 1], one, [n[:, t] for n in noise], True)
        predicted.append(step.x_hat)
        stepped = stepped._replace(skips=model.start(frames[:, t : t + 1], condition[:, :1]).skips)
    assert_close(state, stepped)
    assert (given is None) == (n_past == 1)
    if given is not None:
        assert_close(given.x_hat, torch.stack(predicted, 1))
        assert len(given.q) == len(given.p) == 1 + len(levels)


@torch.no_grad()
def test_start_takes_the_posteriors_mean() -> None:
    model = build(levels=[2])
    frames, condition, noise = clip(model)
    zeros = [torch.zeros_like(n[:, : P - 1]) for n in noise]
    start = model.start(frames[:, :P], condition[:, :P])
    assert_close(start, model.burn_in(frames[:, :P], condition[:, :P], zeros)[1])
    drawn = model.burn_in(frames[:, :P], condition[:, :P], [n[:, : P - 1] for n in noise])[1]
    assert not torch.equal(start.predictor[0][0], drawn.predictor[0][0])
    quiet = build(levels=[2], past_loss=False)
    given, state = quiet.burn_in(frames[:, :P], condition[:, :P], [n[:, : P - 1] for n in noise])
    assert given is None
    assert_close(state, drawn)


@pytest.mark.parametrize(("n_past", "right", "legacy"), [(1, 0, 0), (2, 1, 0), (3, 2, 1)])
@torch.no_grad()
def test_which_frame_the_skip_maps_are_of(n_past: int, right: int, legacy: int) -> None:
    for settings, frame in (({}, right), ({"legacy_skip": True}, legacy)):
        model = build(**settings)
        frames, condition, _ = clip(model)
        state = model.start(frames[:, :n_past], condition[:, :n_past])
        maps = model.encoder(frames[:, frame])[1]
        assert_close(state.skips, model.decoder.sides(maps))


@torch.no_grad()
def test_last_frame_skip_follows_what_is_fed() -> None:
    still, moving = build(), build(last_frame_skip=True)
    data = clip(still)
    frames, condition, _ = data
    assert moving.start(frames[:, :P], condition[:, :P]).skips == ()
    ours, theirs = forced(moving, data), forced(still, data)
    assert_close(ours.x_hat[:, 0], theirs.x_hat[:, 0])  # fed the last past frame, both have its maps
    assert (ours.x_hat[:, 1:] - theirs.x_hat[:, 1:]).abs().amax((0, 2, 3, 4)).min() > 1e-3
    assert_close((ours.q, ours.p), (theirs.q, theirs.p))


def test_skip_rules_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="legacy_skip"):
        SVGConfig(last_frame_skip=True, legacy_skip=True)


# Extras.


@torch.no_grad()
def test_levels_are_sampled_from_coarse_to_fine() -> None:
    model = build(levels=[3, 2, 1, 1])
    assert model.noise_shapes((64, 64)) == [(4,), (3, 8, 8), (2, 16, 16), (1, 32, 32), (1, 64, 64)]
    assert build(levels=[3, 2], backbone="dcgan").noise_shapes((64, 96)) == [(4,), (3, 4, 6), (2, 8, 12)]
    frames, condition, noise = clip(model)
    before = forced(model, (frames, condition, noise), posterior=False)
    for level in range(5):
        changed = [n + 1 if k == level else n for k, n in enumerate(noise)]
        after = forced(model, (frames, condition, changed), posterior=False)
        assert not torch.equal(before.x_hat, after.x_hat)
        for k in range(1, 5):
            assert torch.equal(before.p[k].mu, after.p[k].mu) == (k <= level)


@torch.no_grad()
def test_a_levels_z_is_the_posteriors_where_there_is_a_target() -> None:
    model = build(levels=[2])
    data = clip(model)
    before = [forced(model, data, posterior).x_hat for posterior in (True, False)]
    model.levels[0].posterior[-1].bias.add_(1)
    after = [forced(model, data, posterior).x_hat for posterior in (True, False)]
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


@torch.no_grad()
def test_every_level_counts_in_the_kl() -> None:
    for prior in ("learned", "fixed"):
        model = build(levels=[3, 2], prior=prior)
        step = forced(model, clip(model))
        terms = [kl_divergence(q, p) for q, p in zip(step.q, step.p, strict=True)]
        assert len(terms) == 3 and all((term > 0).all() for term in terms)
        assert all(not p.mu.any() for p in step.p) == (prior == "fixed")


def test_conditional_convolution_starts_as_the_identity() -> None:
    plain, conditional = build(), build(conditional_conv=True)
    missing = conditional.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(".modulate." in name for name in missing)
    data = clip(plain)
    with torch.no_grad():
        assert_close(forced(conditional, data), forced(plain, data))
    forced(conditional, data).x_hat.square().mean().backward()
    layers = [m for m in conditional.decoder.modules() if isinstance(m, Layer)]
    assert all(m.modulate is not None and m.modulate.weight.grad.abs().sum() > 0 for m in layers)
    with torch.no_grad():
        for layer in layers:
            layer.modulate.weight.normal_()
        assert (forced(conditional, data).x_hat - forced(plain, data).x_hat).abs().max() > 0.01


@torch.no_grad()
def test_split_convolution_is_the_concatenations() -> None:
    for backbone in ("vgg", "dcgan"):
        model = build(backbone=backbone)
        d, skip = torch.randn(4, 32, 4, 4), torch.randn(2, 32, 4, 4)
        block = model.decoder._blocks(0)[0]
        conv, both = block.main[0], torch.cat((d, skip.repeat_interleave(2, 0)), 1)
        expected = F.leaky_relu(block.main[1](conv(both)), 0.2)
        side = model.decoder.sides([skip, *model.encoder(torch.rand(2, 3, 32, 32))[1][1:]])[0]
        assert_close(block(d, 2, side), expected)


@torch.no_grad()
def test_logvar_clamp() -> None:
    for c in (None, 0.01):
        model = build(levels=[2], logvar_clamp=c)
        step = forced(model, clip(model))
        assert all((g.logvar.abs().max() <= 0.01) == (c is not None) for g in (*step.q, *step.p))


# What it runs on.


@pytest.mark.parametrize("backbone", ["vgg", "dcgan"])
@pytest.mark.parametrize("size", [(16, 16), (48, 80), (64, 64)])
@torch.no_grad()
def test_multiples_of_16(backbone: str, size: tuple[int, int]) -> None:
    model = build(backbone=backbone, levels=[1])
    assert rollout(model, clip(model, size, n=P + 1)).x_hat.shape == (B, 1, 3, *size)


def test_refuses_data_it_cannot_use() -> None:
    with pytest.raises(UserError, match="vectors"):
        SVG(SVGConfig(**SMALL), (3, 64, 64))
    with pytest.raises(UserError, match="multiples of 16, these are 64x72"):
        build().noise_shapes((64, 72))
    frames = torch.rand(1, 2, 3, *SIZE)
    with pytest.raises(UserError, match=r"train\.batch_size: 1"):
        build().check_batches(SIZE, rows=1)
    build().check_batches(SIZE, rows=2)
    build(norm="group").check_batches(SIZE, rows=1)
    build(norm="group").train().encode(torch.zeros(1, 2, D), frames)
    build().encode(torch.zeros(1, 2, D), frames)


@pytest.mark.parametrize("settings", VARIANTS)
def test_bf16_autocast(settings: dict[str, Any]) -> None:
    model = build(**settings).train()
    data = clip(model)
    frames, condition, noise = data
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given, state = model.burn_in(frames[:, :P], condition[:, :P], [n[:, : P - 1] for n in noise])
        step = forced(model, data)
    assert given is not None and state.predictor[0][1].dtype == torch.float32
    assert {t.dtype for t in (step.x_hat, *(t for g in (*step.q, *step.p) for t in g))} == {torch.float32}
    reference = forced(build(**settings).train(), data)
    assert (step.x_hat - reference.x_hat).abs().mean() < 0.03
    (step.x_hat.square().mean() + given.x_hat.square().mean()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# In the engine.


def arm(name: str, n: int, seed: int) -> Clip:
    """Noise that moves as its condition says."""
    rng = np.random.default_rng(seed)
    condition = rng.normal(size=(n, D)).astype(np.float32)
    picture = rng.integers(0, 255, (3, *SIZE), dtype=np.uint8)
    shifts = np.cumsum(np.sign(condition[:, 0])).astype(int)
    return Clip(name, np.stack([np.roll(picture, shift, -1) for shift in shifts]), condition)


def trainer(*overrides: str, **settings: Any) -> Trainer:
    raw = {
        **BASE,
        "model": {"name": "svg", **SMALL, **settings},
        "data": {"height": SIZE[0], "width": SIZE[1], "n_past": P},
        "train": {"epochs": 1, "max_steps": 2, "window": P + K, "batch_size": 2},
        "kl": {"schedule": "none", "weight": 1e-4},  # at beta 0 the prior would not learn
    }
    config = configs.from_dict(raw, overrides)
    torch.manual_seed(config.seed)
    model = SVG(config.model, (D,))
    return Trainer(model, config, CPU, [arm("a", 12, 0), arm("b", 12, 1)], [arm("v", 6, 2), arm("w", 7, 3)])


@pytest.mark.parametrize("ratio", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"levels": [2], "conditional_conv": True, "backbone": "dcgan"}])
def test_trains_and_evaluates(settings: dict[str, Any], ratio: int) -> None:
    ours = trainer(f"teacher_forcing.ratio={ratio}", "teacher_forcing.detach=on", **settings)
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    steps, epochs = run_events(ours)
    assert len(steps) == 2 and epochs[-1].evaluation is not None
    assert not [name for name, p in ours.model.named_parameters() if torch.equal(p, before[name])]
    summary = evaluate(
        ours.model, [arm("t", 8, 4), arm("u", 8, 5)], CPU, ours.config.eval, n_past=P, n_future=4
    ).summary()
    assert summary["frames"] == 8 and all(np.isfinite(summary[key]) for key in ("psnr", "kl", "recon"))


@pytest.mark.parametrize("past_loss", [True, False])
def test_loss_counts_the_past_frames(past_loss: bool) -> None:
    ours = trainer("teacher_forcing.ratio=1", past_loss=past_loss)
    batch = next(iter(batches(ours.frames, ours.sampler, ours.config.train, 0, 0)))
    ours.model.train()
    steps = predicted(ours, batch)
    assert steps.x_hat.shape[1] == steps.q[0].mu.shape[1] == (4 if past_loss else 3)
    recon = ours._train_step(batch, ours._scheduled(0), ours._forced(0))[1]
    expected = (steps.x_hat - batch.frames[:, -steps.x_hat.shape[1] :]).square().mean()
    assert recon.item() == pytest.approx(expected.item(), rel=1e-4)


def test_join_steps() -> None:
    x, z = torch.randn(2, 5, 1, 2, 2), torch.randn(2, 5, 3)
    parts = [
        Step(x[:, s], (Gaussian(z[:, s], -z[:, s]),), (Gaussian(2 * z[:, s], z[:, s]),))
        for s in (slice(0, 2), slice(2, 5))
    ]
    whole = join_steps(parts)
    assert_close(whole, Step(x, (Gaussian(z, -z),), (Gaussian(2 * z, z),)))


def test_weights_start_as_the_originals() -> None:
    torch.manual_seed(0)
    model = SVG(SVGConfig(**SMALL, conditional_conv=True), (D,))
    weight = model.encoder.c4[1].main[0].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05) and not model.encoder.c5[0].bias.any()
    assert model.encoder.c5[1].weight.mean().item() == pytest.approx(1, abs=0.02)
    assert not any(p.any() for name, p in model.named_parameters() if "modulate" in name)
