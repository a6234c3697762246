"""rtbg.sources.i420: what cameras send becomes the working format exactly, mirrored or of another size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rtbg.color import rgb_to_planes
from rtbg.frame import BT709, FULL, LIMITED, Color, Frame
from rtbg.sources.i420 import I420, WORKING
from tests.webcam_parts import RED, assert_colour, noise


def test_full_range_jpeg_is_converted_exactly() -> None:
    y, u, v = noise((2, 1))
    got = I420((64, 48)).planes((y, u, v), Color(5, FULL))
    assert abs(got[0] - (y * (219 / 255) + 16)).max() <= 0.5001
    for new, old in ((got[1], u), (got[2], v)):
        mean = (old[0::2].astype(float) + old[1::2]) / 2
        assert abs(new - ((mean - 128) * (224 / 255) + 128)).max() <= 0.5001


@pytest.mark.parametrize("matrix", [BT709, 9])
@pytest.mark.parametrize("given", [LIMITED, FULL])
@pytest.mark.parametrize("bits", [8, 10])
def test_another_matrix_is_converted(matrix: int, given: int, bits: int) -> None:
    for rgb in [(255, 255, 255), (0, 0, 0), (128, 128, 128), RED, (20, 220, 90), (10, 30, 250)]:
        color = Color(matrix, given)
        planes = rgb_to_planes(np.full((48, 64, 3), rgb, np.uint8), color, height=0, bits=bits, chroma=(2, 2))
        got = I420((64, 48)).planes(planes, color)
        assert_colour(Frame(got, 0, Fraction(1), WORKING), rgb, within=2)


def test_what_is_right_already_is_copied_and_nothing_is_written_to() -> None:
    planes = noise((2, 2))
    before = [p.copy() for p in planes]
    got = I420((64, 48)).planes(planes, WORKING)
    for new, old, kept in zip(got, planes, before, strict=True):
        assert (new == kept).all() and (old == kept).all() and not np.shares_memory(new, old)


def test_mirror_and_another_size() -> None:
    planes = noise((2, 2))
    got = I420((64, 48), mirror=True).planes(planes, WORKING)
    assert all((new == old[:, ::-1]).all() for new, old in zip(got, planes, strict=True))
    # 4:3 into 16:9: the middle is kept, nothing is stretched. Three bands, of which the outer two go.
    y = np.repeat(np.repeat(np.array([[50], [120], [200]], np.uint8), 80, axis=0), 320, axis=1)
    chroma = np.full((120, 160), 128, np.uint8)
    got = I420((640, 160)).planes((y, chroma, chroma), WORKING)
    assert [p.shape for p in got] == [(160, 640), (80, 320), (80, 320)]
    assert (got[0][4:-4] == 120).all()
    tall = I420((64, 128)).planes((y, chroma, chroma), WORKING)
    assert abs(tall[0][:38].astype(int) - 50).max() <= 1 and abs(tall[0][-38:].astype(int) - 200).max() <= 1
    with pytest.raises(ValueError, match="even size"):
        I420((63, 48))
