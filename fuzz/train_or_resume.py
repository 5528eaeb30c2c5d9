"""A small training that starts in a folder, or goes on there: the command for ckpt-chaos (see README.md).

    python fuzz/train_or_resume.py FOLDER DATA

DATA is a small data set that all runs share; it is written if it does not exist.
At its end ``FOLDER/result.txt`` holds a digest of everything that must equal an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import crash
import torch

from cvaecli import api
from cvaecli.config import loading
from cvaecli.reporter import Silent
from cvaecli.run import Run
from cvaecli.synthetic import dancer


class Notes(Silent):
    """Prints notes, which say the step that a run is resumed from."""

    def note(self, text: str) -> None:
        """See ``Reporter``."""
        print(text)

    warn = note


def lines(value: object, where: str = "") -> list[str]:
    """Nested values as text, without clocks."""
    if isinstance(value, dict):
        return [
            line for key in value if key not in crash.CLOCKS for line in lines(value[key], f"{where}/{key}")
        ]
    if isinstance(value, list | tuple):
        return [line for n, each in enumerate(value) for line in lines(each, f"{where}/{n}")]
    if isinstance(value, torch.Tensor):
        return [f"{where} {hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}"]
    return [f"{where} {value}"]


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    run, reporter = Run(folder / "a"), Notes()
    words, data = crash.FAMILIES["pose"], Path(sys.argv[2])
    if not data.exists():
        dancer.write(data, 16, 16, frames=12, train=3, test=1)
    short = [f"data.root={data}", "train.epochs=1", "train.steps_per_epoch=2"]
    config = loading.load(words[0], [*words[1:], *short])
    if crash.saved(run):
        api.resume(run.path, reporter=reporter)
    else:
        if run.path.exists():  # it died before its first checkpoint
            run.path.rename(folder / f"begun-{os.getpid()}")
        api.train(config, name="a", runs=folder, reporter=reporter)
    (folder / "result.txt").write_text("\n".join(lines(crash.content(run))) + "\n")


if __name__ == "__main__":
    main()
