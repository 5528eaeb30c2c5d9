"""Video written frame by frame: what is read back, in how much memory, and what an interruption leaves."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvaecli import media
from cvaecli.errors import CvaeError, UserError
from cvaecli.media import gif, mp4, panels, stills
from cvaecli.media.panels import Frame


def video(n: int, height: int = 32, width: int = 64) -> Iterator[Frame]:
    """A smooth background with a noisy block that moves and thin coloured sticks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    ground = np.stack([90 + y, 120 + x // 2, 150 + (x + y) // 4], axis=-1).astype(np.uint8)
    for t in range(n):
        frame = ground.copy()
        left = t % max(width - 8, 1)
        frame[4:12, left : left + 8] = rng.integers(0, 60, frame[4:12, left : left + 8].shape, np.uint8)
        frame[height * 5 // 8, left : left + 2] = (255, 20, 30)
        yield frame


def gif_frames(path: Path) -> tuple[list[Frame], list[int]]:
    """Frames as RGB arrays, and their delays in ms."""
    frames, delays = [], []
    with Image.open(path) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(np.array(image.convert("RGB")))
            delays.append(image.info["duration"])
    return frames, delays


def psnr(a: object, b: object) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2) / 255**2))


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# ---------------------------------------------------------------- GIF


def test_gif_frames_times_size_and_colours(tmp_path: Path) -> None:
    true = list(video(30))
    assert media.write(iter(true), tmp_path / "x.gif") == 30
    frames, delays = gif_frames(tmp_path / "x.gif")
    assert len(frames) == 30 and set(delays) == {40}
    assert frames[0].shape == (32, 64, 3)
    assert psnr(frames, true) > 40
    with Image.open(tmp_path / "x.gif") as image:
        assert image.info["loop"] == 0, "for ever"


def test_gif_keeps_rare_colours(tmp_path: Path) -> None:
    true = list(video(16))
    media.write(iter(true), tmp_path / "x.gif")
    frames, _ = gif_frames(tmp_path / "x.gif")
    stick = [frame[20, t].astype(int) for t, frame in enumerate(frames)]
    assert np.abs(np.array(stick) - (255, 20, 30)).max() <= 8


def test_gif_keeps_identical_frames_and_their_time(tmp_path: Path) -> None:
    frame = next(video(1))
    assert media.write((frame for _ in range(25)), tmp_path / "x.gif") == 25
    frames, delays = gif_frames(tmp_path / "x.gif")
    assert len(frames) == 25 and sum(delays) == 1000


@pytest.mark.parametrize(("colours", "error"), [(1, 0), (2, 0), (3, 0), (200, 1), (256, 4)])
def test_gif_of_few_colours_is_nearly_exact(colours: int, error: int, tmp_path: Path) -> None:
    values = np.arange(16 * 16).reshape(16, 16, 1) % colours
    frame = np.concatenate([values, 255 - values, values // 2], axis=2).astype(np.uint8)
    media.write([frame, frame[::-1]], tmp_path / "x.gif")
    frames, _ = gif_frames(tmp_path / "x.gif")
    assert np.abs(np.stack(frames).astype(int) - [frame, frame[::-1]]).max() <= error


@pytest.mark.parametrize("fps", [1, 12.5, 24, 30, 50])
def test_gif_time_adds_up_at_any_rate(fps: float, tmp_path: Path) -> None:
    media.write(video(60, 8, 8), tmp_path / "x.gif", fps=fps)
    _, delays = gif_frames(tmp_path / "x.gif")
    assert sum(delays) == pytest.approx(60_000 / fps, abs=5) and min(delays) >= 20
    assert max(delays) - min(delays) <= 10


def test_gif_scale_is_exact_enlargement(tmp_path: Path) -> None:
    media.write(video(9), tmp_path / "x.gif", scale=3)
    large = np.stack(gif_frames(tmp_path / "x.gif")[0])
    assert large.shape == (9, 96, 192, 3)
    np.testing.assert_array_equal(large, panels.enlarge(large[:, 1::3, 1::3], 3))


def test_a_gif_that_ffmpeg_could_not_write_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gif, "_LOSSLESS", ["-c:v", "nonsense"])
    with pytest.raises(CvaeError, match=r"ffmpeg failed:.*nonsense") as caught:
        media.write(video(3), tmp_path / "x.gif")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_gif_with_a_frame_too_few_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gif, "_LOSSLESS", [*gif._LOSSLESS, "-frames:v", "4"])
    with pytest.raises(CvaeError, match="stored 4 of 5 frames"):
        media.write(video(5), tmp_path / "x.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.gif", "x.mp4"])
def test_an_error_of_the_frames_is_not_taken_for_one_of_ffmpeg(name: str, tmp_path: Path) -> None:
    def unreadable() -> Iterator[Frame]:
        yield from video(2)
        raise OSError("the disk with the frames is gone")

    with pytest.raises(OSError, match="is gone"):
        media.write(unreadable(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".png", ".npz"])
def test_memory_does_not_grow_with_length(suffix: str, tmp_path: Path) -> None:
    def peak(n: int) -> int:
        tracemalloc.start()
        media.write(video(n, 16, 16), tmp_path / f"x{suffix}")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(30)  # imports
    short, long = peak(300), peak(3000)
    assert long < short + 100_000, "3000 frames of 768 bytes are 2.3 MB"


# ---------------------------------------------------------------- other forms


@pytest.mark.parametrize(("height", "width"), [(32, 64), (33, 65)])
def test_mp4_frames_and_even_size(height: int, width: int, tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v3")
    assert media.write(video(20, height, width), tmp_path / "x.mp4", scale=1) == 20
    read = imageio.imread(tmp_path / "x.mp4", plugin="FFMPEG")
    assert read.shape == (20, height + height % 2, width + width % 2, 3)
    assert psnr(read[:, :height, :width], list(video(20, height, width))) > 30
    meta = imageio.immeta(tmp_path / "x.mp4", plugin="FFMPEG")
    assert meta["fps"] == 25 and meta["duration"] == pytest.approx(0.8, abs=0.01)


def test_mp4_without_ffmpeg_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(CvaeError, match=r"no ffmpeg.*pip install"):
        media.write(video(3), tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [1, 3000])
def test_mp4_that_ffmpeg_could_not_write_is_an_error(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mp4, "_H264", ["-crf", "nonsense", "-f", "mp4"])
    with pytest.raises(CvaeError, match="ffmpeg") as caught:
        media.write(video(n), tmp_path / "x.mp4")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_npz_is_exact(tmp_path: Path) -> None:
    assert media.write(video(11, 5, 7), tmp_path / "x.npz", scale=2) == 11
    with np.load(tmp_path / "x.npz") as archive:
        assert archive.files == ["frames"] and archive["frames"].dtype == np.uint8
        np.testing.assert_array_equal(archive["frames"], list(video(11, 5, 7)))


def test_folder_of_plain_numbers_is_exact(tmp_path: Path) -> None:
    media.write(video(11), tmp_path / "frames", scale=2)
    assert {path.name for path in (tmp_path / "frames").iterdir()} == {f"{i}.png" for i in range(11)}
    for i, frame in enumerate(video(11)):
        with Image.open(tmp_path / "frames" / f"{i}.png") as image:
            np.testing.assert_array_equal(np.array(image), panels.enlarge(frame, 2))
    assert media.write(video(2), f"{tmp_path}/run.v2/") == 2, "a trailing slash outweighs a suffix"
    assert (tmp_path / "run.v2" / "1.png").is_file()
    (tmp_path / "empty.gif").mkdir()
    assert media.write(video(2), tmp_path / "empty.gif") == 2


def test_a_folder_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not an empty folder"):
        media.write(video(2), tmp_path)
    with pytest.raises(UserError, match="not an empty folder"):
        media.write(video(2), f"{tmp_path}/mine.txt/")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("n", "total", "numbers"),
    [
        (5, 5, [0, 1, 2, 3, 4]),
        (100, 100, [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]),
        (5, None, [0, 1, 2, 3, 4]),
        (100, None, [0, 16, 32, 48, 64, 80, 96]),
        (3, 100, [0]),  # fewer than announced
    ],
)
def test_strip_columns_are_evenly_spaced(n: int, total: int | None, numbers: list[int]) -> None:
    frames, chosen, count = stills.evenly_spaced(iter(list(video(n))), 12, total)
    assert chosen == numbers and count == n
    true = list(video(n))
    for frame, number in zip(frames, chosen, strict=True):
        np.testing.assert_array_equal(frame, true[number])


def test_png_is_one_strip(tmp_path: Path) -> None:
    assert media.write(video(50), tmp_path / "x.png", scale=2, total=50) == 50
    with Image.open(tmp_path / "x.png") as image:
        assert image.width >= 12 * 2 * 64 and 64 < image.height < 120


# ---------------------------------------------------------------- whole or not at all


class BrokenError(Exception):
    pass


def broken(n: int) -> Iterator[Frame]:
    yield from video(n)
    raise BrokenError


@pytest.mark.parametrize("name", ["x.gif", "x.mp4", "x.png", "x.npz", "x"])
@pytest.mark.parametrize("n", [0, 1, 20])
def test_an_interruption_leaves_nothing(name: str, n: int, tmp_path: Path) -> None:
    with pytest.raises(BrokenError):
        media.write(broken(n), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.gif", "x.mp4", "x.png", "x.npz"])
def test_an_interruption_keeps_the_old_file(name: str, tmp_path: Path) -> None:
    media.write(video(3), tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(BrokenError):
        media.write(broken(9), tmp_path / name)
    assert (tmp_path / name).read_bytes() == before and litter(tmp_path) == []
    media.write(video(6), tmp_path / name)
    assert (tmp_path / name).read_bytes() != before and litter(tmp_path) == []


def test_wrong_requests_are_refused_before_a_frame_is_made(tmp_path: Path) -> None:
    def untouched() -> Iterator[Frame]:
        raise AssertionError("a frame was asked for")
        yield

    (tmp_path / "file").write_text("x")
    for out, options, message in [
        ("x.avi", {}, r"\.avi.*\.gif, \.mp4, \.png, \.npz, or a folder"),
        ("x.gif", {"fps": 60}, "at most 50"),
        ("x.gif", {"fps": 0}, "above 0"),
        ("x.gif", {"scale": 0}, "at least 1"),
        ("file/x.gif", {}, "cannot write"),
    ]:
        with pytest.raises(UserError, match=message):
            media.write(untouched(), tmp_path / out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_frames_and_wrong_frames(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frames"):
        media.write([], tmp_path / "x.gif")
    frame = next(video(1))
    with pytest.raises(ValueError, match=r"frame 0: expected uint8 \[H, W, 3\]"):
        media.write([frame.astype(np.float32)], tmp_path / "x.gif")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="frame 1 is"):
        media.write([frame, frame[:5]], tmp_path / "x.gif")
    assert list(tmp_path.iterdir()) == []


def test_save_png_and_parents(tmp_path: Path) -> None:
    frame = next(video(1))
    path = media.save_png(tmp_path / "a" / "b" / "x.png", frame)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.array(image), frame)
    assert litter(path.parent) == []


# ---------------------------------------------------------------- pictures


def test_enlarge() -> None:
    frame = next(video(1, 3, 4))
    big = panels.enlarge(frame, 3)
    assert big.shape == (9, 12, 3)
    np.testing.assert_array_equal(big[1::3, 1::3], frame)
    assert panels.enlarge(frame, 1) is frame
    assert panels.enlarge(np.stack([frame] * 2), 2).shape == (2, 6, 8, 3)


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(64, 32, 6), (32, 64, 6), (64, 64, 6), (400, 8, 1), (401, 8, 1), (1, 1, 400)],
)
def test_default_scale_fits_400_pixels(width: int, height: int, scale: int) -> None:
    assert media.default_scale(width, height) == scale


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("x.gif", 384, 384), ("x.mp4", 384, 384), ("x.png", 1500, 1700), ("x", 64, 64)],
)
def test_videos_and_strips_are_enlarged_for_viewing(name: str, least: int, most: int, tmp_path: Path) -> None:
    media.write(video(20), tmp_path / name, scale=None, total=20)
    if name == "x.mp4":
        imageio = pytest.importorskip("imageio.v3")
        width = imageio.immeta(tmp_path / name, plugin="FFMPEG")["size"][0]
    else:
        with Image.open(tmp_path / (name if name != "x" else "x/0.png")) as image:
            width = image.width
    assert least <= width <= most


def contains(picture: Frame, part: Frame) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(picture, part.shape)
    return bool((windows == part).all(axis=(-3, -2, -1)).any())


@pytest.mark.parametrize("counter", [False, True])
def test_side_by_side_shows_every_panel_unchanged(counter: bool) -> None:
    streams = [list(video(3)), [frame[::-1] for frame in video(3)], [255 - frame for frame in video(3)]]
    pictures = list(
        panels.side_by_side(streams, ["truth", "prediction", "condition"], scale=2, counter=counter)
    )
    assert len(pictures) == 3 and len({picture.shape for picture in pictures}) == 1
    for t, picture in enumerate(pictures):
        assert picture.dtype == np.uint8 and picture.shape[1] >= 3 * 128
        for stream in streams:
            assert contains(picture, panels.enlarge(stream[t], 2))
    assert (pictures[0][-14:] != pictures[1][-14:]).any() == counter, "only a counter changes below"


def test_side_by_side_is_lazy_and_strict() -> None:
    pulled = []

    def watched() -> Iterator[Frame]:
        for t, frame in enumerate(video(5)):
            pulled.append(t)
            yield frame

    pictures = panels.side_by_side([watched(), video(4)], ["a", "b"])
    next(pictures)
    assert pulled == [0]
    with pytest.raises(ValueError, match="shorter"):
        list(pictures)
    with pytest.raises(ValueError, match="captions"):
        next(panels.side_by_side([video(1)], ["a", "b"]))
    with pytest.raises(ValueError, match="different sizes"):
        next(panels.side_by_side([video(1), video(1, 8, 8)], ["a", "b"]))


def test_strip_sizes_and_content() -> None:
    row = np.stack(list(video(5)))
    bare = panels.strip([row], [""], scale=1)
    assert bare.shape[0] < 40 and bare.shape[1] < 5 * 64 + 25
    named = panels.strip([row, row[::-1]], ["truth", "rollout"], scale=2, columns=[0, 5, 10, 15, 20])
    assert named.shape[0] > 2 * 64 + 10 and named.shape[1] > 5 * 128 + 30
    assert all(contains(named, panels.enlarge(frame, 2)) for frame in row[[0, 4]])
    tiny = panels.strip([np.stack(list(video(12, 6, 6)))], [""], columns=[1000 + i for i in range(12)])
    assert tiny.dtype == np.uint8, "captions wider than the frames are thinned out"
    with pytest.raises(ValueError, match="rows"):
        panels.strip([row, row[:4]], ["a", "b"])
    with pytest.raises(ValueError, match="5 columns"):
        panels.strip([row], ["a"], columns=[1])
