"""The person's own colours in what is put over something else later: --show foreground, and transparent output."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rtbg.color import subsample
from rtbg.composite import Compositor, black_planes
from rtbg.foreground import Foreground
from rtbg.frame import LIMITED, Array, Color, Frame

PERSON, ROOM = (60, 110, 160), (200, 150, 90)  # Y, U, V of 8 bits
FORMATS = [(bits, chroma) for bits in (8, 10) for chroma in ((2, 2), (2, 1), (1, 1), (1, 2))]


def soft_disc(width: int, height: int) -> Array:
    """uint8 alpha: a disc with an edge that is 14 pixels wide."""
    y, x = np.mgrid[0:height, 0:width]
    distance = 0.3 * height - np.hypot(x - 0.5 * width, y - 0.5 * height)
    return np.clip(distance / 14 * 255 + 127.5, 0, 255).astype(np.uint8)


def weights(alpha: Array, chroma: tuple[int, int]) -> list[Array]:
    """Alpha of each plane, 0..1."""
    luma = alpha.astype(np.float32)
    return [luma / 255, *[subsample(luma, chroma) / 255] * 2]


def mixed(alpha: Array, bits: int, chroma: tuple[int, int]) -> Frame:
    """A person of one colour, mixed by alpha with a room of one colour."""
    step, dtype = 1 << bits - 8, np.uint8 if bits == 8 else np.uint16
    both = zip(weights(alpha, chroma), PERSON, ROOM, strict=True)
    planes = tuple(np.rint((w * f + (1 - w) * b) * step).astype(dtype) for w, f, b in both)
    return Frame(planes, 0, Fraction(1, 30), Color(1, LIMITED))


@pytest.mark.parametrize("size", [(640, 360), (641, 359)], ids=str)
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_over_black(bits: int, chroma: tuple[int, int], size: tuple[int, int]) -> None:
    """What `--show foreground` writes is the person over black, without a rim of the room."""
    alpha = soft_disc(*size)
    frame, step = mixed(alpha, bits, chroma), 1 << bits - 8
    black = black_planes(frame)
    # The background that is given is not shown.
    plain, done = (
        Compositor(show="foreground", foreground=f)(frame, alpha, frame.planes) for f in (None, Foreground())
    )
    for k, w in enumerate(weights(alpha, chroma)):
        soft, ideal = (w > 0.05) & (w < 1), w * PERSON[k] + (1 - w) * (int(black[k].flat[0]) / step)
        before, after = (np.abs(f.planes[k] / step - ideal)[soft].mean() for f in (plain, done))
        assert before > 5, "there was something to do"
        assert after < 0.2 * before, k
    np.testing.assert_array_equal(done.planes[0][alpha == 0], black[0][alpha == 0])


@pytest.mark.parametrize("show", ["composite", "foreground"])
@pytest.mark.parametrize("wrap", [0, 0.8])
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_transparent(bits: int, chroma: tuple[int, int], wrap: float, show: str) -> None:
    """Straight alpha: the planes hold the person's colours, not yet mixed with anything."""
    alpha = soft_disc(640, 360)
    frame, step = mixed(alpha, bits, chroma), 1 << bits - 8
    done = Compositor(show=show, foreground=Foreground(wrap=wrap))(frame, alpha, None)
    for k, w in enumerate(weights(alpha, chroma)):
        soft = (w > 0.05) & (w < 1)
        before, after = (np.abs(f.planes[k][soft] / step - PERSON[k]).mean() for f in (frame, done))
        assert before > 15, "there was something to do"
        assert after < 3, k
    top = (1 << bits) - 1
    np.testing.assert_array_equal(done.planes[3], np.rint(alpha * (top / 255)))
    black = black_planes(frame)
    np.testing.assert_array_equal(done.planes[0][alpha == 0], black[0][alpha == 0])
