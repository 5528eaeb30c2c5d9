"""What could the latent tell? Principal components of a run's errors on data that it was not trained on.

    python benchmarks/residual_directions.py RUN [KEY=VALUE ...]
    python benchmarks/residual_directions.py RUN --picture first-four.png

An error is a true frame minus the prediction with z from the prior. Its principal components are the ways in
which frames differ that the condition does not tell. With a linear decoder of variance s² the lower bound
uses z for a component of variance v if v > weight * s² (Tipping & Bishop 1999, Lucas et al. 2019; weight is
that of the KL). s² is the mean squared error here, as in ``train.recon=optimal_sigma``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tools

LAGS = (1, 10, 100)
"""Frames between two scores whose correlation is printed."""
SHOWN = 4


def main() -> None:
    options = _arguments()
    errors, weight = _errors(options.run, options.overrides, options.split)
    shape = errors.shape[2:]
    errors = errors.reshape(*errors.shape[:2], -1)
    variance, directions, scores = components(errors)
    s2 = float(np.square(errors).mean())
    share = variance / (s2 * errors.shape[-1])
    print(f"{len(directions)} frames, {-10 * np.log10(s2):.2f} dB from the mean squared error")
    print(f"of the squared error, {1 - share.sum():.1%} is the mean error of all frames")
    print(f"and {share[:20].sum():.1%} are the first 20 components")
    for factor in sorted({1.0, weight}):
        print(f"{(variance > factor * s2).sum()} components have more than {factor:g} s²")
    lags = [lag for lag in LAGS if lag < scores.shape[1] - 1]
    print("\n| component | of the squared error | gain if told exactly |", end="")
    print("".join(f" frames {lag} apart |" for lag in lags))
    print("|---" * (3 + len(lags)) + "|")
    for k in range(SHOWN):
        print(f"| {k + 1} | {share[k]:.1%} | {-10 * np.log10(1 - share[k]):.2f} dB |", end="")
        print("".join(f" {_correlation(scores[..., k], lag):.2f} |" for lag in lags))
    if options.picture:
        _save(options.picture, directions[:SHOWN].reshape(SHOWN, *shape))


def components(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components of errors ``[clips, frames, values]``, largest first.

    Returns:
        Their variances ``[n]``, directions ``[n, values]`` of length 1, and scores ``[clips, frames, n]``.
    """
    centred = errors - errors.mean((0, 1))
    rows = centred.reshape(-1, errors.shape[-1])
    _, spread, directions = np.linalg.svd(rows, full_matrices=False)
    return spread**2 / len(rows), directions, centred @ directions.T


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--picture", type=Path, help="write the first components as a PNG")
    return parser.parse_intermixed_args()


def _errors(run: str, overrides: list[str], split: str) -> tuple[np.ndarray, float]:
    """Errors ``[clips, frames, H, W, 3]`` in units of the data range, and the KL's weight."""
    config, truth, predicted = tools.truth_and_predictions(run, overrides, split)
    P = config.data.n_past
    return (truth[:, P:].astype(np.float32) - predicted[:, P:]) / 255, config.kl.weight


def _correlation(scores: np.ndarray, lag: int) -> float:
    """Of each clip's scores ``[clips, frames]`` with those ``lag`` frames later."""
    earlier, later = scores[:, :-lag].ravel(), scores[:, lag:].ravel()
    return float(np.corrcoef(earlier, later)[0, 1])


def _save(path: Path, directions: np.ndarray) -> None:
    """Grey where a component changes nothing, ``[n, H, W, 3]``."""
    from cvaecli import media
    from cvaecli.media import panels

    largest = np.abs(directions).max((1, 2, 3), keepdims=True)
    pictures = ((0.5 + 0.5 * directions / largest) * 255).round().astype(np.uint8)
    media.save_png(
        path, panels.strip([pictures], ["error"], scale=4, columns=[str(k + 1) for k in range(SHOWN)])
    )


if __name__ == "__main__":
    main()
