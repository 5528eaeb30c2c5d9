"""Validation: its curves against rollouts and formulas written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, AddingCVAE, ReferenceToy, make_clip, make_model
from torch import Tensor

from cvaecli import metrics
from cvaecli.config.schema import EvalConfig
from cvaecli.data.clip import Clip
from cvaecli.engine.evaluate import evaluate, predicted_frames
from cvaecli.engine.rollout import rollout
from cvaecli.engine.scores import ClipScore, Evaluation
from cvaecli.models.base import State, Step, VideoCVAE
from cvaecli.objective import kl_divergence
from cvaecli.seeding import frame_noise

CLIPS = [make_clip(7, "a"), make_clip(7, "b", seed=1), make_clip(5, "c", seed=2)]


def score(model: VideoCVAE, clips: list[Clip] | None = None, **settings: Any) -> Evaluation:
    options = {
        "n_past": 1,
        "seed": 3,
        **{k: settings.pop(k) for k in ("n_past", "n_future", "with_ssim", "recon") if k in settings},
    }
    return evaluate(model, clips or CLIPS, CPU, EvalConfig(**settings), **options)


def tensors(clip: Clip) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(clip.frames).float()[None] / 255, torch.from_numpy(clip.condition).float()[
        None
    ] / 255


def arrays(one: ClipScore) -> dict[str, np.ndarray]:
    return {key: value for key, value in vars(one).items() if isinstance(value, np.ndarray)}


def assert_same(a: Evaluation, b: Evaluation) -> None:
    for one, other in zip(a.clips, b.clips, strict=True):
        assert one.name == other.name
        for key, value in arrays(one).items():
            np.testing.assert_allclose(value, arrays(other)[key], atol=2e-4, err_msg=key)


def test_the_rollout_curve_is_the_rollouts_psnr() -> None:
    model = make_model()
    scores = score(model)
    for clip, one in zip(CLIPS, scores.clips, strict=True):
        frames, labels = tensors(clip)
        noise = frame_noise(3, [clip.name], range(1, clip.n_frames), model.noise_shapes((8, 8)))
        (x_hat,) = rollout(model, frames[:, :1], labels[:, :1], [labels[:, 1:]], lambda *_, n=noise: n, CPU)
        np.testing.assert_allclose(one.psnr[0], metrics.psnr(x_hat, frames[:, 1:])[0], atol=1e-3)
        assert one.first == 1 and one.psnr.shape == (1, clip.n_frames - 1)


def test_one_step_feeds_the_true_frame_and_posterior_sees_the_target() -> None:
    model, clip = make_model(), CLIPS[0]
    one = score(model, [clip]).clips[0]
    frames, labels = tensors(clip)
    for k in range(1, clip.n_frames):
        noise = [n[:, 0] for n in frame_noise(3, [clip.name], range(k, k + 1), model.noise_shapes((8, 8)))]
        with torch.no_grad():
            label = {"label": model.encode(labels[:, k : k + 1])["label"][:, 0]}
            prior, _ = model.step((), frames[:, k - 1], label, noise, posterior=False)
            seen = {n: v[:, 0] for n, v in model.encode(labels[:, k : k + 1], frames[:, k : k + 1]).items()}
            posterior, _ = model.step((), frames[:, k - 1], seen, noise, posterior=True)
        for curve, step in ((one.psnr_one_step, prior), (one.psnr_posterior, posterior)):
            expected = metrics.psnr(step.x_hat[:, None], frames[:, k : k + 1]).item()
            assert curve[k - 1] == pytest.approx(expected, abs=1e-3)
        stacked = [type(g)(g.mu[:, None], g.logvar[:, None]) for g in (*posterior.q, *posterior.p)]
        assert one.kl[k - 1] == pytest.approx(kl_divergence(*stacked).item(), rel=1e-4)


def test_the_first_frame_has_no_drift_yet() -> None:
    for one in score(make_model()).clips:
        assert one.psnr[0, 0] == pytest.approx(one.psnr_one_step[0], abs=1e-4)


@pytest.mark.parametrize(
    "model", [make_model(), AddingCVAE(), ReferenceToy()], ids=["pose", "state", "parallel"]
)
def test_batches_and_chunks_change_nothing(model: VideoCVAE) -> None:
    whole = score(model, samples=2)
    assert_same(whole, score(model, samples=2, batch_size=1))
    assert_same(whole, score(model, samples=2, chunk=2))
    assert_same(score(model, [CLIPS[1]], samples=2), Evaluation([whole.clips[1]]))


def test_a_parallel_models_one_step_is_its_rollout() -> None:
    for one in score(ReferenceToy()).clips:
        np.testing.assert_array_equal(one.psnr[0], one.psnr_one_step)


def test_the_model_comes_back_as_it_was() -> None:
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score(model)
    assert model.training and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_trivial_predictors() -> None:
    clip = CLIPS[0]
    one = score(make_model(), [clip]).clips[0]
    truth = clip.frames.astype(np.float64)[1:] / 255
    for curve, guess in ((one.repeat_last_past, clip.frames[0] / 255), (one.mean_frame, truth.mean(0))):
        expected = -10 * np.log10(np.maximum(((truth - guess) ** 2).mean((1, 2, 3)), 1e-10))
        np.testing.assert_allclose(curve, expected, atol=1e-3)


def test_several_given_frames_and_a_limit() -> None:
    one = score(make_model(), n_past=2, n_future=3).clips[0]
    assert one.first == 2 and one.psnr.shape == (1, 3)
    assert [predicted_frames(CLIPS[0], 2, limit) for limit in (None, 3, 4, 9)] == [5, 3, 4, 5]


def test_clips_without_a_true_frame_to_predict_are_left_out() -> None:
    scores = score(make_model(), [make_clip(1, "given", steps=6), CLIPS[2]])
    assert [one.name for one in scores.clips] == ["c"]


def test_samples_differ_and_best_is_the_best() -> None:
    scores = score(make_model(), samples=3)
    one = scores.clips[0]
    assert one.psnr.shape == (3, 6) and len({row.tobytes() for row in one.psnr}) == 3
    assert one.psnr[one.best].mean() == max(row.mean() for row in one.psnr)
    assert scores.summary()["psnr_best_of_samples"] >= scores.summary()["psnr"]
    mean = score(make_model(), samples=2, prior="mean").clips[0]
    np.testing.assert_array_equal(mean.psnr[0], mean.psnr[1])


def test_a_data_sets_number_is_the_mean_over_clips_of_means_over_frames() -> None:
    scores = score(make_model())
    summary = scores.summary()
    assert summary["psnr"] == pytest.approx(np.mean([one.psnr.mean() for one in scores.clips]))
    assert summary["frames"] == 6 + 6 + 4
    assert summary["psnr_of_mean_mse"] == pytest.approx(
        np.mean([-10 * math.log10(one.mse.mean()) for one in scores.clips])
    )
    assert summary["psnr_of_mean_mse"] <= summary["psnr"] <= summary["psnr_per_channel"]
    assert [clip["frames"] for clip in summary["clips"]] == [6, 6, 4]
    rows = list(scores.per_frame())
    assert len(rows) == 16 and rows[0]["frame"] == 1 and rows[0]["psnr"] == scores.clips[0].psnr[0, 0]


def test_ssim_is_there_when_asked_for_and_big_enough() -> None:
    clips = [make_clip(4, size=12)]
    model = make_model(size=12)
    assert score(model, clips).summary()["ssim"] is None
    summary = score(model, clips, with_ssim=True).summary()
    assert -1 <= summary["ssim"] <= 1 and -1 <= summary["ssim_one_step"] <= 1
    assert math.isnan(score(make_model(), with_ssim=True).summary()["ssim"])


def test_the_strip_shows_the_frames_that_were_scored() -> None:
    clip = make_clip(30, "long")
    one = score(AddingCVAE(), [clip], chunk=4).clips[0]
    assert one.strip_frames[0] == 1 and one.strip_frames[-1] == 29 and len(one.strip_frames) == 10
    np.testing.assert_array_equal(one.strip["truth"], np.moveaxis(clip.frames[one.strip_frames], 1, -1))
    assert one.strip["rollout"].shape == (10, 8, 8, 3)
    for column, frame in enumerate(one.strip_frames):
        error = ((one.strip["rollout"][column] / 255.0 - one.strip["truth"][column] / 255.0) ** 2).mean()
        assert -10 * math.log10(error) == pytest.approx(one.psnr[0, frame - 1], abs=0.1)


def test_progress_ends_at_its_total() -> None:
    for model in (make_model(), ReferenceToy()):
        told: list[tuple[int, int]] = []
        evaluate(
            model,
            CLIPS,
            CPU,
            EvalConfig(samples=2, chunk=2),
            n_past=1,
            progress=lambda *a, t=told: t.append(a),
        )
        assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_rollout_that_runs_off_to_nan_is_scored_as_black() -> None:
    model = AddingCVAE(weight=float("nan"))
    one = score(model, [CLIPS[0]]).clips[0]
    truth = CLIPS[0].frames[1:] / 255
    np.testing.assert_allclose(one.psnr[0], -10 * np.log10((truth**2).mean((1, 2, 3))), atol=1e-3)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_frames_with_a_nan_or_an_infinity_are_counted(broken: float) -> None:
    class RunsOff(AddingCVAE):
        """Finite up to its fourth step."""

        def step(self, state: State, *args: Any, **kwargs: Any) -> tuple[Step, State]:
            step, new = super().step(state, *args, **kwargs)
            if state[0][0] >= 3:
                step.x_hat[:, 0, 0, 0] = broken
            return step, new

    for chunk in (2, 64):
        scores = score(RunsOff(), samples=2, chunk=chunk)
        assert [one.nan_frames for one in scores.clips] == [2 * 3, 2 * 3, 2 * 1], "of both samples"
        summary = scores.summary()
        assert summary["nan_frames"] == 14 and [c["nan_frames"] for c in summary["clips"]] == [6, 6, 2]
    assert score(AddingCVAE()).summary()["nan_frames"] == 0


def test_how_the_error_divides_into_near_the_label_and_elsewhere() -> None:
    """Labels with one dot, and a model that is wrong in the left half of the frame only."""
    clip = make_clip(5, size=32)
    labels = np.full_like(clip.condition, 255)
    labels[:, :, 16, 2] = 0  # near it: rows 11 to 21, columns 0 to 7
    frames = np.zeros_like(clip.frames)
    frames[..., :16] = 128
    model = ReferenceToy()
    found = evaluate(model, [Clip("a", frames, labels)], CPU, EvalConfig(), n_past=1)
    score, split = found.clips[0], found.summary()["near_label"]
    assert split["pixels"] == pytest.approx(11 * 8 / 32**2) and split["distance"] == 5
    x = torch.from_numpy(frames[None, 1:]) / 255
    strip = torch.from_numpy(score.strip["rollout"]).movedim(-1, 1)[None] / 255
    assert len(score.strip_frames) == 4  # all predicted frames
    error = (strip - x).square().mean(2)
    near, away = error[..., 11:22, :8], error.clone()
    away[..., 11:22, :8] = torch.nan
    assert split["psnr"] == pytest.approx(-10 * math.log10(near.mean()), abs=0.1)
    assert split["psnr_elsewhere"] == pytest.approx(-10 * math.log10(away.nanmean()), abs=0.1)
    assert split["error"] == pytest.approx(float(near.sum() / error.sum()), abs=0.01)


def test_a_part_without_pixels_has_no_psnr() -> None:
    clip = make_clip(5)  # 8x8 pixels: all are near the label
    near = score(ReferenceToy(), [clip]).summary()["near_label"]
    assert near["pixels"] == 1 and near["psnr_elsewhere"] is None and near["psnr"] is not None
    blank = Clip("blank", clip.frames, np.full_like(clip.condition, 255))
    near = score(ReferenceToy(), [blank]).summary()["near_label"]
    assert near["pixels"] == near["error"] == 0 and near["psnr"] is None


def test_pictures_are_kept_of_the_first_clips_only() -> None:
    clips = [make_clip(5, str(k), seed=k) for k in range(6)]
    for batch_size in (1, 8):
        shown = [bool(one.strip) for one in score(AddingCVAE(), clips, batch_size=batch_size).clips]
        assert shown == [True] * 4 + [False] * 2


def test_vectors_have_no_ink() -> None:
    clip = make_clip(5)
    vectors = np.zeros((5, 7), dtype=np.float32)

    class Vectors(AddingCVAE):
        def encode(self, condition: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
            pictures = condition[..., :1, None, None].expand(*condition.shape[:2], 3, 8, 8)
            return super().encode(pictures, targets)

    found = evaluate(Vectors(), [Clip("a", clip.frames, vectors)], CPU, EvalConfig(), n_past=1)
    assert found.summary()["near_label"] is None
