"""``cvae validate``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from .common import AsJson, Debug, Quiet, RunAndOverrides, run_and_overrides, terminal
from .console import Terminal

Swap = Literal["actions", "positions", "conditions"]


def validate(
    arguments: RunAndOverrides = None,
    split: Annotated[str, typer.Option(help="val, or test where it has true frames.")] = "val",
    samples: Annotated[int | None, typer.Option(min=1, help="Samples per clip (eval.samples).")] = None,
    swap: Annotated[
        Swap | None,
        typer.Option(
            help="Give the predicted steps of each clip the next clip's actions or positions (robot arms) or "
            "whole conditions: the loss in PSNR shows how much the model uses them. Results go to "
            "eval/SPLIT-swapped-WHAT.",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score a run: PSNR and SSIM of rollout and one-step predictions, trivial predictors, KL."""
    with terminal(quiet, as_json, debug) as console:
        run, overrides = run_and_overrides(arguments)
        if samples is not None:
            overrides.append(f"eval.samples={samples}")
        from .. import api

        show(
            console,
            api.validate(run, overrides, split=split, swap=swap, reporter=console),
        )


def show(console: Terminal, metrics: dict[str, Any]) -> None:
    """Print an evaluation as a table or as JSON."""
    if console.as_json:
        console.data(metrics)
        return
    protocol, trivial = metrics["protocol"], metrics["baselines"]
    title = f"{protocol['split']}: {metrics['frames']} predicted frames, {len(metrics['clips'])} clip(s)"
    own = protocol["conditions"] == "the clip's own"
    swapped = "" if own else f", {protocol['conditions']}"
    prior = f"prior {protocol['prior']}, {protocol['samples']} sample(s)"
    prior += ", averaged over flips" if protocol["average_flips"] else ""
    rows = [
        ["rollout (own predictions fed back)", _dB(metrics["psnr"]), _number(metrics["ssim"])],
        [
            "one step (true previous frame fed)",
            _dB(metrics["psnr_one_step"]),
            _number(metrics["ssim_one_step"]),
        ],
        ["one step, z from the posterior", _dB(metrics["psnr_posterior"]), ""],
        ["repeat the last given frame", _dB(trivial["repeat_last_past"]["psnr"]), ""],
        ["mean frame of the clip (uses the truth)", _dB(trivial["mean_frame"]["psnr"]), ""],
    ]
    if protocol["literature_psnr"] == "psnr_per_channel":
        per_channel = ["rollout, PSNR of each channel averaged*", _dB(metrics["psnr_per_channel"]), ""]
        rows.insert(1, per_channel)
    if protocol["samples"] > 1:
        rows[1:1] = [
            [
                f"rollout, {which} sample of each clip",
                _dB(metrics[f"psnr_{which}_of_samples"]),
                _number(metrics[f"ssim_{which}_of_samples"]),
            ]
            for which in ("best", "worst")
        ]
    console.table(f"{title}{swapped}, {prior}", ["", "PSNR dB", "SSIM"], rows)
    if protocol["literature_psnr"] == "psnr_per_channel":
        console.result(
            "* the PSNR that publications on these data quote; the other rows use the error over all channels"
        )
    kl = "not finite" if metrics["kl"] is None else f"{metrics['kl']:.3f}"
    gap = metrics["posterior_prior_gap"]
    gap = "not finite" if gap is None else f"{gap:+.2f} dB"
    console.result(f"KL {kl} nats per frame; posterior-to-prior gap {gap}")
    if near := metrics["near_label"]:
        parts = {"there": near["psnr"], "elsewhere": near["psnr_elsewhere"]}
        found = ", ".join(f"{value:.2f} dB {where}" for where, value in parts.items() if value is not None)
        console.result(
            f"pixels within {near['distance']} of the label's ink: {near['pixels']:.0%} of the frame, "
            f"{near['error']:.0%} of the squared error ({found or 'not finite'})"
        )
    if metrics.get("nan_frames"):
        console.result(f"{metrics['nan_frames']} predicted frames are not finite: the model diverges")
    if metrics["diversity"] is not None:
        console.result(f"diversity {metrics['diversity']:.4f} (standard deviation over samples, white is 1)")
    console.result(
        f"data: {protocol['data']}; weights: {protocol['checkpoint']}, step {protocol['step']}, "
        f"{protocol['epochs_done']} epochs done"
    )


def _dB(value: float | None) -> str:  # noqa: N802
    return "not finite" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
