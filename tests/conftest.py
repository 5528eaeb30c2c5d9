"""What several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# One thread a process, and so for the processes that tests start: several of them run at once, and sums
# over another number of threads are rounded differently. Set before torch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs more CUDA devices than there are."""
    if (marker := item.get_closest_marker("gpu")) is None:
        return
    import torch

    wanted = marker.args[0] if marker.args else 1
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < wanted:
        pytest.skip(f"needs {wanted} CUDA device{'s' * (wanted > 1)}; there are {found}")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["CVAE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of few pixels: for tests of what is drawn and where to, not of how large."""
    from matplotlib.figure import Figure

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *to, **how: save(figure, *to, **how | {"dpi": 40}))


@pytest.fixture
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon for the weights of small test models, which it would leave to AdamW."""
    from cvaecli.engine import muon

    monkeypatch.setattr(muon, "SMALLEST", 4)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real data: ``$CVAE_SHARED``, or ``shared`` beside the project."""
    path = Path(os.environ.get("CVAE_SHARED") or Path(__file__).parents[2] / "shared")
    if not (path / "data").is_dir():
        pytest.skip(f"no real data at {path}; set CVAE_SHARED to the folder that holds data/ and bad/")
    return path.resolve()


def picture(number: int, width: int = 12, height: int = 10) -> Image.Image:
    """A gradient with a block that moves by a third of a pixel a frame: ordinary, small motion."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 10, y * 12, 255 - x * 10], axis=-1).astype(float)
    at = 2 + number % 12 / 3
    block = np.clip(1 - np.abs(x - at) / 2, 0, 1)[..., None]
    return Image.fromarray((pixels * (1 - block) + 60 * block).astype(np.uint8))


def label(number: int, width: int = 12, height: int = 10) -> Image.Image:
    """White with one red column that moves with the block."""
    image = Image.new("RGB", (width, height), "white")
    for y in range(2, height - 2):
        image.putpixel((2 + number % (width - 4), y), (255, 10 * (number % 12), 0))
    return image


@pytest.fixture
def dance_set(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small good set in the dance layout; arguments change its numbers, names and parts."""

    def make(
        name: str = "set",
        train: int = 8,
        val: int = 4,
        test: int = 0,
        start: int = 0,
        form: str = "{}.png",
        size: tuple[int, int] = (12, 10),
        label_size: tuple[int, int] = (12, 10),
    ) -> Path:
        root = tmp_path / name
        root.mkdir()
        folders = [(f"{s}/{s}_img", f"{s}/{s}_label", n, n) for s, n in (("train", train), ("val", val)) if n]
        folders += [(f"test/test_img/{s}", f"test/test_label/{s}", 1, 6) for s in range(test)]
        for images, labels, n_images, n_labels in folders:
            (root / images).mkdir(parents=True)
            (root / labels).mkdir(parents=True)
            for number in range(start, start + n_images):
                picture(number, *size).save(root / images / form.format(number))
            for number in range(start, start + n_labels):
                label(number, *label_size).save(root / labels / form.format(number))
        return root

    return make
