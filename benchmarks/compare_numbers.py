"""Check that the tool computes the same numbers as the plain path.

Compares, in float32 and at the config's full size, the loss terms and the gradient of a training step and
the predictions of a rollout, and counts the arithmetic of both. With --run it scores a trained model in bf16
and in fp32 instead.

Examples: python benchmarks/compare_numbers.py --config cyclical
          python benchmarks/compare_numbers.py --config robot train.batch_size=4
          python benchmarks/compare_numbers.py --run runs/reference-001        (bf16 against fp32)
"""

from __future__ import annotations

import copy
from typing import Any

import plain_training
import tools
import torch
from compare_speed import plain_pieces
from torch import Tensor

from cvaecli.api.benchmark import clip_rollout, first_epoch, new_trainer
from cvaecli.api.loading import load_data, open_run
from cvaecli.config.schema import RunConfig
from cvaecli.engine.device import prepare
from cvaecli.engine.evaluate import evaluate
from cvaecli.engine.events import StepEvent
from cvaecli.engine.measure import count_flops
from cvaecli.models.base import VideoCVAE
from cvaecli.reporter import Silent

COMPARED = ("loss", "recon", "kl", "gradient", "rounding tool", "rounding plain")
FULL = ("runtime.precision=fp32", "train.ema=null")


def training(config: RunConfig, tf32: bool = False) -> dict[str, Any]:
    """Relative differences of one training step's terms and gradient, and the FLOPs per frame of both.

    Args:
        tf32: let both compute fp32 in TF32 on CUDA, with ten bits of mantissa.
    """
    config = first_epoch(config, 1)
    device = prepare(config.runtime)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    data = load_data(config, ("train", "val"), Silent())
    trainer = new_trainer(config, 1, data, device)
    model = copy.deepcopy(trainer.model)
    clips = data.splits["train"]
    reference, exact = (
        plain_training.PlainTrainer(model, config, device.torch, clips, trainer.sampler, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    got: dict[str, dict[str, float]] = {}
    events = trainer.events()

    def step() -> None:
        event = next(events)
        assert isinstance(event, StepEvent) and event.terms is not None
        got["terms"] = event.terms

    frames = config.train.batch_size * (config.train.window - config.data.n_past)
    flops = count_flops(step), count_flops(lambda: got.update(reference=reference.step()))
    terms = {name: abs(got["terms"][name] / value - 1) for name, value in got["reference"].items()}
    exact.step()
    ours, theirs, true = (gradient(one.model) for one in (trainer, reference, exact))
    return {
        **terms,
        "gradient": float((ours - theirs).norm() / theirs.norm()),
        "rounding tool": float((ours - true).norm() / true.norm()),
        "rounding plain": float((theirs - true).norm() / true.norm()),
        "GFLOP tool": flops[0] / frames / 1e9,
        "GFLOP plain": flops[1] / frames / 1e9,
    }


def gradient(model: VideoCVAE) -> Tensor:
    """All parameters' gradients as one vector."""
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def predictions(config: RunConfig, frames: int) -> float:
    """Largest difference of a rollout's values, relative to the largest value."""
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"chunk": frames})})
    device = prepare(config.runtime)
    data = load_data(config, ("train", "val"), Silent())
    trainer, clip = new_trainer(config, 1, data, device), data.splits["val"][0]
    model = copy.deepcopy(trainer.trained).to(memory_format=torch.contiguous_format).eval()
    theirs = torch.stack(next(plain_pieces(model, clip, config, device.torch)), 1)
    ours = torch.cat(
        list(clip_rollout(device.for_inference(trainer.trained.eval()), clip, frames, config, device)), 1
    )
    return float((ours - theirs).abs().max() / theirs.abs().max())


def bf16(run: str, overrides: list[str]) -> dict[str, float]:
    """PSNR in dB of a run's validation rollout in both precisions; nothing is written into the run."""
    scores = {}
    for precision in ("fp32", "bf16"):
        opened = open_run(run, [*overrides, f"runtime.precision={precision}"])
        config = opened.config
        scores[precision] = evaluate(
            opened.model,
            load_data(config, ("val",), Silent()).splits["val"],
            opened.device,
            config.eval,
            n_past=config.data.n_past,
            n_future=config.data.n_future,
            seed=config.seed,
        ).summary()["psnr"]
    return scores


def main() -> None:
    """Print the differences as Markdown tables."""
    parser = tools.parser(__doc__)
    parser.add_argument("--frames", type=int, default=16, help="predicted frames that are compared")
    parser.add_argument("--tf32", action="store_true", help="compute fp32 in TF32 in training steps (CUDA)")
    parser.add_argument("--run", help="a trained run: its PSNR in fp32 and in bf16 instead")
    arguments = parser.parse_intermixed_args()
    if arguments.run:
        scores = bf16(arguments.run, tools.overrides(arguments))
        change = scores["bf16"] - scores["fp32"]
        row = [arguments.run, *(f"{score:.3f}" for score in scores.values()), f"{change:+.3f}"]
        tools.markdown(["run", "fp32, dB", "bf16, dB", "change, dB (target < 0.05)"], [row])
        return
    rows = []
    for ratio in (1, 0):
        config = tools.settings(arguments, *FULL, f"teacher_forcing.ratio={ratio}")
        found = training(config, arguments.tf32)
        numbers = [f"{found[name]:.1e}" for name in COMPARED]
        numbers += [f"{found[name]:.3g}" for name in ("GFLOP plain", "GFLOP tool")]
        rows.append([f"{arguments.config}, {'forced' if ratio else 'free-running'}", *numbers])
    columns = ["relative difference (target 1e-5)", "loss", "recon", "KL", "gradient"]
    columns += ["its rounding error (against fp64): tool", "plain"]
    tools.markdown([*columns, "plain, GFLOP per frame", "tool"], rows)
    worst = predictions(tools.settings(arguments, *FULL), arguments.frames)
    print(f"\npredictions, {arguments.frames} frames of a rollout: {worst:.1e}")


if __name__ == "__main__":
    tools.command(main)
