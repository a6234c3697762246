"""A picture behind the person. Memory bound: the picture, at most `LONGEST` a side, and one set of planes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from rtbg.backgrounds.fit import Layout, place, resized
from rtbg.color import rgb_to_planes
from rtbg.errors import BackgroundError
from rtbg.frame import Array, Frame, StreamInfo
from rtbg.progress import quiet_opencv

LONGEST = 4096  # pixels; larger pictures are reduced on loading

# What a picture file begins with, of the formats that OpenCV reads. GIF is left to the video side, which also
# plays a GIF of one picture.
_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"P3", b"P6", b"\0\0\0\x0cjP  ")


class PictureBackground:
    """A still picture, fitted and converted once for every format that frames come in."""

    def __init__(self, draw: Callable[[StreamInfo], Array], info: StreamInfo) -> None:
        """draw: gives the picture in the stored grid of a stream, uint8 (H, W, 3) RGB."""
        self._draw, self._info = draw, info
        self._layout: Layout | None = None
        self._planes: tuple[Array, ...] = ()
        self._convert(Layout.of(info))

    def at(self, frame: Frame, alpha: Array) -> tuple[Array, ...]:
        """See `protocols.Background`."""
        layout = Layout.of(frame)
        if layout != self._layout:
            self._convert(layout)
        return self._planes

    def close(self) -> None:
        """Nothing to free."""

    def _convert(self, layout: Layout) -> None:
        rgb = self._draw(resized(self._info, layout))
        self._planes = rgb_to_planes(rgb, layout.color, height=layout.height, bits=layout.bits, chroma=layout.chroma)
        self._layout = layout


def open_image(path: Path, info: StreamInfo, fit: str) -> PictureBackground:
    """The picture file as a background. Raises BackgroundError."""
    picture = read_picture(path)
    return PictureBackground(lambda stream: place(picture, stream, fit), info)


def is_picture(path: Path) -> bool:
    """Whether a file begins as a picture does. Raises BackgroundError when it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as exc:
        raise BackgroundError(f"cannot read the background {path}: {exc.strerror or exc}") from exc
    return head.startswith(_HEADS) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis")


def read_picture(path: Path, *, small: bool = False) -> Array:
    """uint8 (h, w, 3) RGB, turned upright as its EXIF tag says, over black where transparent.
    small: only to see whether it can be read, at a fraction of the size where that is cheaper.
    Raises BackgroundError."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as exc:
        raise BackgroundError(f"cannot read the background {path}: {exc.strerror or exc}") from exc
    try:
        # JPEG is the only format that reduces cheaply, and it has neither alpha nor more than 8 bits.
        with quiet_opencv():
            if bytes(data[:3]) == b"\xff\xd8\xff":
                picture = cv2.imdecode(data, cv2.IMREAD_REDUCED_COLOR_8 if small else cv2.IMREAD_COLOR)
            else:
                picture = _upright(data)
    except cv2.error as exc:
        raise BackgroundError(f"the background {path} is damaged or too large a picture") from exc
    if picture is None or picture.size == 0 or picture.dtype != np.uint8:
        raise BackgroundError(f"the background {path} is not a picture that can be read: use PNG, JPEG or WebP")
    rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    factor = LONGEST / max(rgb.shape[:2])
    if factor < 1:
        size = max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return np.asarray(rgb)


def _upright(data: Array) -> Array | None:
    """uint8 (h, w, 3) BGR over black; None where its transparent pixels have neither 8 nor 16 bits a channel, or none
    can be read. IMREAD_COLOR alone would show what lies under transparent pixels."""
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
        return cv2.imdecode(data, cv2.IMREAD_COLOR)
    if picture.dtype == np.uint16:
        picture = cv2.convertScaleAbs(picture, alpha=1 / 257)
    return over_black(picture) if picture.dtype == np.uint8 else None


def over_black(picture: Array) -> Array:
    """uint8 (h, w, 3) of a uint8 (h, w, 4) picture with straight alpha in the last channel."""
    alpha = picture[:, :, 3]
    return np.asarray(cv2.multiply(picture[:, :, :3], cv2.merge((alpha, alpha, alpha)), scale=1 / 255))
