"""One picture as a source. Used by `open_source`.

Memory: the picture as RGB and as three planes of its size (6 bytes a pixel) while it is opened, 3 after.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from rtbg.color import rgb_to_planes
from rtbg.errors import InputError
from rtbg.frame import BT709, FULL, Array, Color, Frame, StreamInfo
from rtbg.progress import quiet_opencv
from rtbg.sources.probe import head, is_animated_webp

_log = logging.getLogger("rtbg")
_STRIP = 128  # rows converted at a time, so that the float copies stay small


class StillSource:
    """A PNG, JPEG, WebP, BMP, TIFF, AVIF, JPEG 2000 or PNM file: one frame of 8 bits, 4:4:4, full range BT.709.

    EXIF orientation is applied, transparency dropped, grey and 16-bit pictures become 8-bit colour. The planes
    give the RGB back within 2 levels. Of an animated WebP the first picture is taken, with a warning.
    info: still, time_base 1, rate 1, frames 1; the frame has pts 0. Raises InputError."""

    live = False

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if is_animated_webp(head(path)):
            _log.warning("%s is an animated WebP: only its first picture is used", path)
        color = Color(BT709, FULL)
        planes = _planes(_read_rgb(path), color)
        height, width = planes[0].shape
        self._frame: Frame | None = Frame(planes, 0, Fraction(1), color)
        self.info = StreamInfo(
            width,
            height,
            Fraction(1),
            Fraction(1),
            color=color,
            chroma=(1, 1),
            frames=1,
            duration=1.0,
            still=True,
            rgb=True,
            path=path,
        )

    def read(self) -> Frame | None:
        """The picture, then None."""
        frame, self._frame = self._frame, None
        return frame

    def close(self) -> None:
        """Frees the picture."""
        self._frame = None


def _read_rgb(path: Path) -> Array:
    """uint8 (H, W, 3). By way of bytes: OpenCV opens no names outside the system's own code page."""
    try:
        with quiet_opencv():
            rgb = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as exc:
        raise InputError(f"{path} is a picture that cannot be read: {exc.err}") from exc
    if rgb is None:
        raise InputError(f"{path} is damaged, or not a picture that can be read")
    return np.asarray(rgb)


def _planes(rgb: Array, color: Color) -> tuple[Array, ...]:
    """Y, U, V of full size. Converted by strips: in one go the float copies take 24 bytes a pixel."""
    height = rgb.shape[0]
    planes = tuple(np.empty(rgb.shape[:2], np.uint8) for _ in range(3))
    for top in range(0, height, _STRIP):
        rows = slice(top, top + _STRIP)
        strip = rgb_to_planes(rgb[rows], color, height=height, bits=8, chroma=(1, 1))
        for plane, part in zip(planes, strip, strict=True):
            plane[rows] = part
    return planes
