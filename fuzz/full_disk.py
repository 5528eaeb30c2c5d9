"""Train on a disk that becomes full, then go on when it is larger. Needs root, to mount a disk in memory.

    sudo python fuzz/full_disk.py

The training must stop with one line and exit status 1, its last checkpoint must be intact, no part file may
be left, and the resumed run must equal one that had space all along. The exit status is 1 if one fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import crash

from cvaecli import checkpoint
from cvaecli.run import Run, read_rows

SIZE, LARGER = "20m", "400m"
OVERRIDES = ["model.widths=[96,96]", "train.epochs=16", "train.save_every=1", "train.save_minutes=60"]


def main() -> int:
    words = crash.FAMILIES["pose"]
    command = [sys.executable, "-m", "cvaecli", "train", "-q"]
    with tempfile.TemporaryDirectory() as folder:
        small, plenty = Path(folder) / "small", Path(folder) / "plenty"
        crash.small_configs(Path(folder))
        settings = ["--config", words[0], *words[1:], f"data.root={folder}/pose-data", *OVERRIDES]
        small.mkdir()
        plenty.mkdir()
        environment = {**os.environ, "CVAE_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}

        def cvae(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *arguments],
                cwd=where,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )

        assert cvae(plenty, *settings, "--name", "a").returncode == 0
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", small], check=True)
        try:
            full = cvae(small, *settings, "--name", "a")
            run = Run(small / "runs/a")
            parts = list(small.rglob("*.part"))
            saved = checkpoint.load_for_resume(run)[0]
            told = full.stderr.strip()
            print(f"disk of {SIZE}: exit status {full.returncode}: {told}")
            print(f"last checkpoint: step {saved['step']}; status {run.info()['status']}")
            subprocess.run(["mount", "-o", f"remount,size={LARGER}", small], check=True)
            resumed = cvae(small, "--resume", "a")
            whole = Run(plenty / "runs/a")
            differs = (
                crash.difference(crash.content(run), crash.content(whole)) if not resumed.returncode else ""
            )
            rows = len(read_rows(run.path / "metrics.csv"))
        finally:
            subprocess.run(["umount", small], check=True)
    print(f"disk of {LARGER}: exit status {resumed.returncode}, {rows} epochs")
    print(f"compared with a run that had space: {differs or 'equal'}")
    clean = full.returncode == 1 and told.count("\n") == 0 and "Traceback" not in told and not parts
    return int(not clean or resumed.returncode != 0 or bool(differs) or saved["step"] == 0)


if __name__ == "__main__":
    sys.exit(main())
