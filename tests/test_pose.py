"""The pose model beyond its numbers: steps, causality, state, switches, and course checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cvaecli.api.loading import load_initial_weights
from cvaecli.errors import UserError
from cvaecli.models.base import VideoCVAE
from cvaecli.models.layers import batch_norm_per_step
from cvaecli.models.pose import MODEL, PoseConfig, PoseCVAE
from cvaecli.models.pose_checkpoint import load_course_checkpoint
from cvaecli.models.reference import ReferenceConfig, ReferenceCVAE
from cvaecli.reporter import Silent

SMALL: dict[str, Any] = {"frame_dim": 16, "label_dim": 8, "z_dim": 4, "fusion_dim": 16}
B, K, H, W = 2, 3, 9, 12


def build(size: tuple[int, int] = (H, W), **settings: Any) -> PoseCVAE:
    torch.manual_seed(0)
    return PoseCVAE(PoseConfig(**(SMALL | settings)), (3, *size))


def clip(size: tuple[int, int] = (H, W), seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """condition, targets, x_prev, noise; ``[B, K, ...]`` each."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(B, K + 1, 3, *size, generator=generator)
    condition = torch.rand(B, K, 3, *size, generator=generator)
    noise = torch.randn(B, K, SMALL["z_dim"], *size, generator=generator)
    return condition, frames[:, 1:], frames[:, :-1], noise


def rollout(model: PoseCVAE, first: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
    """Free-running prediction from the prior: ``[B, K, C, H, W]``."""
    features = model.encode(condition)
    state, x, frames = model.start(first[:, None], condition[:, :1]), first, []
    for k in range(condition.shape[1]):
        one = {name: value[:, k] for name, value in features.items()}
        step, state = model.step(state, x, one, [noise[:, k]], posterior=False)
        assert step.q == ()
        x = step.x_hat
        frames.append(x)
    return torch.stack(frames, 1)


def test_follows_the_protocol() -> None:
    model = build()
    assert MODEL is PoseCVAE and issubclass(MODEL, VideoCVAE) and MODEL.Config is PoseConfig
    assert model.noise_shapes((H, W)) == [(4, H, W)]
    assert all(field.description for key, field in PoseConfig.model_fields.items() if key != "name")
    condition, targets, x_prev, noise = clip()
    step, state = model.unroll((), x_prev, model.encode(condition, targets), [noise], posterior=True)
    assert step.x_hat.shape == targets.shape and state == ()
    for gaussian in (*step.q, *step.p):
        assert gaussian.mu.shape == gaussian.logvar.shape == noise.shape
    assert len(step.q) == 1 and not step.p[0].mu.any() and not step.p[0].logvar.any()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("posterior", ["target", "fed"])
@pytest.mark.parametrize("draw_posterior", [False, True])
def test_unroll_equals_the_loop(training: bool, posterior: str, draw_posterior: bool) -> None:
    model = build(posterior=posterior).train(training)
    condition, targets, x_prev, noise = clip()
    features = model.encode(condition, targets)
    ours, _ = model.unroll((), x_prev, features, [noise], draw_posterior)
    loop, _ = VideoCVAE.unroll(model, (), x_prev, features, [noise], draw_posterior)
    torch.testing.assert_close(ours, loop, rtol=1e-5, atol=1e-6)


def test_unroll_gives_the_loops_gradients() -> None:
    gradients = []
    for unroll in (PoseCVAE.unroll, VideoCVAE.unroll):
        model = build().train()
        condition, targets, x_prev, noise = clip()
        step, _ = unroll(model, (), x_prev, model.encode(condition, targets), [noise], True)
        (step.x_hat.square().mean() + step.q[0].mu.square().mean()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_batch_norm_per_step_is_the_course_loop() -> None:
    condition, targets, _, _ = clip()
    together, by_step = build().train(), build(batch_norm="pooled").train()
    features = together.encode(condition, targets)
    for k in range(K):  # pooled over a single step: the course's loop
        one = by_step.encode(condition[:, k : k + 1], targets[:, k : k + 1])
        for name, value in one.items():
            torch.testing.assert_close(features[name][:, k], value[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.state_dict(), by_step.state_dict(), rtol=1e-6, atol=1e-7)
    assert together.label_transformation[2].num_batches_tracked == K


def test_batch_norm_per_step_keeps_its_digits_under_autocast() -> None:
    x = torch.randn(B, K, 4, H, W) + 3
    norms = [torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)]
    for norm, autocast in zip(norms, (False, True), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            batch_norm_per_step(norm, x)
    torch.testing.assert_close(norms[0].state_dict(), norms[1].state_dict(), rtol=1e-6, atol=0)


def test_batch_norm_pooled_mixes_the_steps() -> None:
    condition, _, _, _ = clip()
    condition[:, 1:] *= 0.2
    label = {bn: build(batch_norm=bn).train().encode(condition)["label"] for bn in ("per_step", "pooled")}
    assert (label["per_step"] - label["pooled"]).abs().max() > 0.01
    assert (
        build(batch_norm="pooled")
        .eval()
        .encode(condition)["label"]
        .equal(build().eval().encode(condition)["label"])
    )


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_a_condition_never_changes_earlier_frames(training: bool) -> None:
    condition, _, x_prev, noise = clip()
    edited = condition.clone()
    edited[:, 1] = 1 - edited[:, 1]
    before = rollout(build().train(training), x_prev[:, 0], condition, noise)
    after = rollout(build().train(training), x_prev[:, 0], edited, noise)
    assert torch.equal(before[:, :1], after[:, :1])
    assert not any(torch.equal(before[:, k], after[:, k]) for k in (1, 2))


@torch.no_grad()
def test_rows_of_a_batch_are_independent() -> None:
    model = build().eval()
    condition, _, x_prev, noise = clip()
    both = rollout(model, x_prev[:, 0], condition, noise)
    for b in range(B):
        row = slice(b, b + 1)
        alone = rollout(model, x_prev[row, 0], condition[row], noise[row])
        torch.testing.assert_close(alone, both[row], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_no_state_leaks_between_calls() -> None:
    model = build().eval()
    condition, _, x_prev, noise = clip()
    first = rollout(model, x_prev[:, 0], condition, noise)
    other, _, other_prev, _ = clip(seed=2)
    rollout(model, other_prev[:, 0], other, noise)
    assert torch.equal(first, rollout(model, x_prev[:, 0], condition, noise))


@torch.no_grad()
def test_fed_posterior_never_sees_the_target() -> None:
    condition, targets, x_prev, noise = clip()
    for kind in ("fed", "target"):
        model = build(posterior=kind).eval()
        steps = [
            model.unroll((), x_prev, model.encode(condition, t), [noise], posterior=True)[0]
            for t in (targets, 1 - targets)
        ]
        assert torch.equal(steps[0].q[0].mu, steps[1].q[0].mu) == (kind == "fed")
        assert torch.equal(steps[0].x_hat, steps[1].x_hat) == (kind == "fed")


@torch.no_grad()
def test_sigmoid_keeps_frames_in_range() -> None:
    condition, _, x_prev, noise = clip()
    linear = rollout(build().eval(), 10 * x_prev[:, 0], condition, noise)
    sigmoid = rollout(build(output="sigmoid").eval(), 10 * x_prev[:, 0], condition, noise)
    assert sigmoid.min() > 0 and sigmoid.max() < 1
    torch.testing.assert_close(sigmoid[:, 0], torch.sigmoid(linear[:, 0]))


@torch.no_grad()
def test_logvar_clamp_is_symmetric() -> None:
    condition, targets, _, _ = clip()
    logvar = build().eval().encode(condition, 20 * targets)["logvar"]
    clamped = build(logvar_clamp=0.1).eval().encode(condition, 20 * targets)["logvar"]
    assert logvar.abs().max() > 0.1
    assert torch.equal(clamped, logvar.clamp(-0.1, 0.1))


@pytest.mark.parametrize("size", [(4, 4), (33, 47), (66, 64)])
@torch.no_grad()
def test_any_frame_size(size: tuple[int, int]) -> None:
    condition, _, x_prev, noise = clip(size)
    assert rollout(build(size), x_prev[:, 0], condition, noise).shape == condition.shape


@pytest.mark.parametrize("training", [False, True])
def test_bf16_autocast(training: bool) -> None:
    model = build().train(training)
    condition, targets, x_prev, noise = clip()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.encode(condition, targets)
        step, _ = model.unroll((), x_prev, features, [noise], posterior=True)
    assert features["label"].dtype == torch.bfloat16
    assert step.x_hat.dtype == step.q[0].logvar.dtype == torch.float32
    reference, _ = model.unroll((), x_prev, model.encode(condition, targets), [noise], posterior=True)
    torch.testing.assert_close(step.x_hat, reference.x_hat, rtol=0, atol=0.05)
    step.x_hat.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_smallest_sizes_build() -> None:
    smallest = {"frame_dim": 8, "label_dim": 2, "z_dim": 4, "fusion_dim": 8}
    condition, _, x_prev, noise = clip()
    assert rollout(build(**smallest), x_prev[:, 0], condition, noise).shape == condition.shape
    for name in smallest:
        with pytest.raises(ValueError, match=name):
            PoseConfig(**{name: smallest[name] - 1})


@pytest.mark.parametrize(("shape", "word"), [((7,), "model.name=svg"), ((3, 3, 64), "3x64")])
def test_refuses_data_it_cannot_use(shape: tuple[int, ...], word: str) -> None:
    with pytest.raises(UserError, match=word):
        PoseCVAE(PoseConfig(), shape)


# Course checkpoints, made up.


def weights() -> dict[str, Tensor]:
    return build().state_dict()


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def load(path: Path, content: object) -> Any:
    torch.save(content, path)
    return read(path)


def read(path: Path) -> Any:
    model = build()
    return load_course_checkpoint(path, model.state_dict(), model.config.model_dump())


def test_course_checkpoint(tmp_path: Path) -> None:
    state = weights()
    content = {"state_dict": state, "optimizer": state, "lr": 1e-3, "tfr": torch.tensor(0.5), "last_epoch": 7}
    found = load(tmp_path / "epoch=7.ckpt", content)
    PoseCVAE(PoseConfig(**SMALL), (3, H, W)).load_state_dict(found.state_dict)
    saved_at, optimizer = found.notes
    assert saved_at.endswith("saved at epoch 7, learning rate 0.001, tfr 0.5")
    assert "model's weights" in optimizer


def test_course_checkpoint_of_a_distributed_run(tmp_path: Path) -> None:
    state = weights()
    content = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "lr": [1e-3]}
    found = load(tmp_path / "x.ckpt", content)
    assert list(found.state_dict) == list(state) and found.notes == []


def test_course_checkpoint_with_a_real_optimiser(tmp_path: Path) -> None:
    adam = torch.optim.Adam(build().parameters()).state_dict()
    found = load(tmp_path / "x.ckpt", {"state_dict": weights(), "optimizer": adam})
    assert "with a new one" in found.notes[0]


def test_training_starts_from_a_course_checkpoint(tmp_path: Path) -> None:
    path, model, reporter = tmp_path / "x.ckpt", build(), Notes()
    state = {name: value + 1 for name, value in weights().items()}
    torch.save({"state_dict": state, "tfr": 0.5}, path)
    load_initial_weights(model, path, reporter)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert reporter.notes[0].endswith("tfr 0.5") and "starting from" in reporter.notes[-1]


def test_a_model_that_knows_no_foreign_checkpoints_refuses_them(tmp_path: Path) -> None:
    torch.save({"state_dict": weights()}, tmp_path / "x.ckpt")
    sizes = ReferenceConfig(widths=[16, 16], encoder_blocks=[0, 1], decoder_blocks=[0], z_dim=1)
    with pytest.raises(UserError, match="not a checkpoint of this tool"):
        load_initial_weights(ReferenceCVAE(sizes, (3, H, W)), tmp_path / "x.ckpt", Notes())


def spoilt(**changes: Any) -> dict[str, Any]:
    """A checkpoint with entries changed, or dropped where the value is None. ``__`` stands for a dot."""
    state: dict[str, Any] = {**weights(), **{k.replace("__", "."): v for k, v in changes.items()}}
    return {"state_dict": {k: v for k, v in state.items() if v is not None}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no 'state_dict'"),
        ({"model": {}}, "no 'state_dict'"),
        ({"state_dict": {}}, "missing frame_transformation.0.conv1.weight, .* and 20. more"),
        (spoilt(Generator__7__bias=None), "missing Generator.7.bias"),
        (spoilt(extra=torch.zeros(1)), "unexpected extra"),
        (spoilt(Generator__7__bias=torch.zeros(4)), r"Generator.7.bias is \[4\] instead of \[3\]"),
        (spoilt(Generator__7__bias=3.0), "not tensors: Generator.7.bias"),
        ({"state_dict": build(frame_dim=32).state_dict()}, "its sizes are model.frame_dim=32"),
        (torch.nn.Linear(2, 2), "Linear.*refused"),
    ],
)
def test_course_checkpoint_that_does_not_fit(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "x.ckpt", content)
    assert "\n" not in str(caught.value) and "x.ckpt" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint"),
        (b"hello world\n", "not a checkpoint"),
        (b"\x80\x05K\x01.", "not a checkpoint"),
        ("cut", "damaged or incomplete"),
        ("zeroed", "damaged or incomplete"),
        (None, "cannot be read"),
    ],
)
def test_file_that_is_no_checkpoint(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "x.ckpt"
    if isinstance(content, str):
        torch.save({"state_dict": weights()}, path)
        whole = path.read_bytes()
        content = whole[: len(whole) // 2] if content == "cut" else whole[:300] + b"\0" * 600 + whole[900:]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
