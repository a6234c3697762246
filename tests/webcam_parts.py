"""What the tests of the webcam source share: streams that FFmpeg opens in a camera's place, and their pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer

from rtbg.cameras import Camera, Mode
from rtbg.color import rgb_to_planes
from rtbg.errors import NoPicture
from rtbg.frame import FULL, Color, Frame
from rtbg.sources.i420 import WORKING
from rtbg.sources.webcam import WebcamSource
from rtbg.v4l2 import Format, FrameSize

RED = (200, 60, 40)


def camera(path: str = "nowhere", *, size: tuple[int, int] = (320, 240), rate: int = 30, error: int = 0) -> Camera:
    form = Format("YUYV", "", False, (FrameSize(size, size, rates=(Fraction(rate),)),))
    return Camera("Test Cam", path, 0, "v4l2", "uvcvideo", "usb-1", (form,), error)


def lavfi(graph: str) -> Callable[[Camera, Mode], InputContainer]:
    return lambda camera, mode: av.open(graph, format="lavfi")


def source(
    opener: Callable[[Camera, Mode], InputContainer], *, of: Camera | None = None, mirror: bool = False
) -> WebcamSource:
    return WebcamSource(
        of or camera(), size=(320, 240), rate=30, mirror=mirror, opener=opener, finder=lambda known: known
    )


@contextmanager
def closing(made: WebcamSource) -> Iterator[WebcamSource]:
    try:
        yield made
    finally:
        made.close()


def picture(made: WebcamSource, seconds: float = 20) -> Frame:
    """The next picture, whatever goes wrong before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            frame = made.read()
        except NoPicture:
            continue
        assert frame is not None
        return frame
    raise AssertionError("no picture came")


def trouble(made: WebcamSource, match: str, seconds: float = 20) -> str:
    """The first message that matches."""
    until = time.monotonic() + seconds
    seen = set()
    while time.monotonic() < until:
        try:
            made.read()
        except NoPicture as exc:
            assert "\n" not in str(exc)
            seen.add(str(exc))
            if match in str(exc):
                return str(exc)
    raise AssertionError(f"{match!r} was never said: {seen}")


def jpeg(size: tuple[int, int], rgb: tuple[int, int, int]) -> bytes:
    """One full-range 4:2:2 JPEG of one colour, as webcams send it."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuvj422p", Fraction(1, 30)
    planes = rgb_to_planes(
        np.full((size[1], size[0], 3), rgb, np.uint8), Color(5, FULL), height=0, bits=8, chroma=(2, 1)
    )
    frame = av.VideoFrame(*size, "yuvj422p")
    for plane, data in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        rows[: data.shape[0], : data.shape[1]] = data
    frame.pts, frame.time_base = 0, Fraction(1, 30)
    return b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)])


def expected(rgb: tuple[int, int, int]) -> list[int]:
    planes = rgb_to_planes(np.full((2, 2, 3), rgb, np.uint8), WORKING, height=0, bits=8, chroma=(1, 1))
    return [int(p[0, 0]) for p in planes]


def assert_colour(frame: Frame, rgb: tuple[int, int, int], within: int = 3) -> None:
    for plane, code in zip(frame.planes, expected(rgb), strict=True):
        assert abs(plane.astype(int) - code).max() <= within, (plane.min(), plane.max(), code)


def noise(chroma: tuple[int, int], bits: int = 8, size: tuple[int, int] = (64, 48)) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    w, h = size
    small = (h // chroma[1], w // chroma[0])
    low, high = 16 << bits - 8, 235 << bits - 8
    dtype = np.uint8 if bits == 8 else np.uint16
    return tuple(rng.integers(low, high, shape).astype(dtype) for shape in ((h, w), small, small))
