"""Frames side by side with captions: panels for a video, strips for a page.

All pictures are uint8 RGB ``[H, W, 3]`` on white. Frames are enlarged by whole numbers with nearest
neighbours, so that every predicted pixel is shown unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Frame = npt.NDArray[np.uint8]

_INK = (40, 40, 40)
_EDGE = (170, 170, 170)  # a thin line around each frame: label images are white on a white page
_GAP = 6


def enlarge(frame: Frame, k: int) -> Frame:
    """Make each pixel of ``[..., H, W, 3]`` a k x k block; with k = 1 this is the frame itself."""
    return frame if k == 1 else frame.repeat(k, axis=-3).repeat(k, axis=-2)


def side_by_side(
    streams: Sequence[Iterable[Frame]], captions: Sequence[str], *, scale: int = 4, counter: bool = False
) -> Iterator[Frame]:
    """Compose a video from several of equal length, e.g. truth | prediction | condition.

    Args:
        streams: for each panel an iterable of uint8 ``[H, W, 3]``; consumed together, one frame at a time.
        captions: one line above each panel; a long one gets a smaller font.
        scale: whole-number enlargement of the frames (not of the text).
        counter: write the frame's number, from 0, below the panels.

    Yields:
        Pictures uint8 ``[H', W', 3]``, all of one size.

    Raises:
        ValueError: streams of different lengths, frames of different sizes, or not one caption per stream.
    """
    if len(streams) != len(captions):
        raise ValueError(f"{len(streams)} panels, {len(captions)} captions")
    page: Frame | None = None
    corners: list[tuple[int, int]] = []
    for number, frames in enumerate(zip(*streams, strict=True)):
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"frame {number}: panels of different sizes {sorted(sizes)}")
        panels = [enlarge(frame, scale) for frame in frames]
        H, W = panels[0].shape[:2]
        if page is None:
            page, corners = _empty_page(captions, H, W, counter)
        picture = page.copy()
        for panel, (top, left) in zip(panels, corners, strict=True):
            picture[top : top + H, left : left + W] = panel
        if counter:
            _draw_text(picture, f"frame {number}", left=_GAP, top=corners[0][0] + H + 3, size=_text_size(H))
        yield picture


def strip(
    rows: Sequence[Frame], captions: Sequence[str], scale: int = 1, columns: Sequence[int | str] = ()
) -> Frame:
    """A grid for a page: each row is a video (truth, rollout, label), each column a moment.

    Args:
        rows: uint8 ``[K, H, W, 3]`` each, all of one shape.
        captions: one line to the left of each row; if all are empty, they take no space.
        scale: whole-number enlargement of the frames.
        columns: K frame numbers to write above; if they would touch, only every n-th is written.

    Returns:
        uint8 ``[H', W', 3]``.

    Raises:
        ValueError: rows of different shapes, or a wrong number of captions or columns.
    """
    if len({row.shape for row in rows}) != 1 or len(rows) != len(captions):
        raise ValueError(f"rows {[row.shape for row in rows]}, {len(captions)} captions")
    K, H, W = rows[0].shape[0], scale * rows[0].shape[1], scale * rows[0].shape[2]
    if columns and len(columns) != K:
        raise ValueError(f"{K} columns, {len(columns)} captions")
    # About 7 point if the strip is as wide as a page, and at most 0.4 of a frame's height
    size, gap = int(np.clip(0.016 * K * W, 11, max(0.4 * H, 11))), 3
    line = _line_height(size)
    left = gap + max(_text_width(caption, size) for caption in captions)
    left += 2 * gap if left > gap else 0
    top = gap + (line if columns else 0)
    page = np.full((top + len(rows) * (H + gap), left + K * (W + gap), 3), 255, np.uint8)
    for r, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        y = top + r * (H + gap)
        _draw_text(page, caption, left=gap, top=y + (H - line) // 2, size=size)
        for k, frame in enumerate(row):
            _paste(page, enlarge(frame, scale), y, left + k * (W + gap))
    texts = [str(column) for column in columns]
    every = -(-(max((_text_width(text, size) for text in texts), default=0) + 4) // (W + gap))
    for k, text in list(enumerate(texts))[::every]:
        x = left + k * (W + gap) + (W - _text_width(text, size)) // 2
        _draw_text(page, text, left=max(x, 0), top=2, size=size)
    return page


def _empty_page(
    captions: Sequence[str], height: int, width: int, counter: bool
) -> tuple[Frame, list[tuple[int, int]]]:
    """The page without its panels, and (top, left) of each panel."""
    H, W = height, width
    size = _text_size(H)
    line = _line_height(size) + 2
    page = np.full(
        (line + H + (line + 2 if counter else _GAP), _GAP + len(captions) * (W + _GAP), 3), 255, np.uint8
    )
    corners = [(line, _GAP + i * (W + _GAP)) for i in range(len(captions))]
    for caption, (top, left) in zip(captions, corners, strict=True):
        fitting = size
        while fitting > 7 and _text_width(caption, fitting) > W:
            fitting -= 1
        _draw_text(page, caption, left=left, top=top - _line_height(fitting), size=fitting)
        page[top - 1 : top + H + 1, left - 1 : left + W + 1] = _EDGE
    return page, corners


def _paste(page: Frame, frame: Frame, top: int, left: int) -> None:
    H, W = frame.shape[:2]
    page[top - 1 : top + H + 1, left - 1 : left + W + 1] = _EDGE
    page[top : top + H, left : left + W] = frame


def _text_size(height: int) -> int:
    """Font size in pixels; it grows with the panel, so that text stays readable when a page shrinks both."""
    return int(np.clip(height / 8, 11, 28))


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    return int(np.ceil(_font(size).getlength(text))) if text else 0


def _line_height(size: int) -> int:
    return int(_font(size).getbbox("Ågjy")[3]) + 2


def _draw_text(page: Frame, text: str, *, left: int, top: int, size: int) -> None:
    """Draw text into the page, in place; the page's edge cuts it off."""
    width, height = min(_text_width(text, size) + 1, page.shape[1] - left), _line_height(size)
    if not text or width <= 0:
        return
    box = page[top : top + height, left : left + width]
    image = Image.fromarray(box)
    ImageDraw.Draw(image).text((0, 0), text, fill=_INK, font=_font(size))
    box[:] = np.asarray(image)
