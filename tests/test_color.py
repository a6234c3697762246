"""rtbg.color: matrices, ranges, untagged rules, chroma siting, depths."""

from __future__ import annotations

import av
import numpy as np
import pytest

from rtbg.color import (
    enlarge_chroma,
    planes_to_rgb,
    reduce,
    rgb_to_planes,
    rgb_to_yuv_matrix,
    small_rgb,
    solid,
    subsample,
    subsample_sums,
    tagged,
    weights,
    yuv_to_rgb_matrix,
)
from rtbg.frame import BT709, BT2020_NCL, FULL, LIMITED, SMPTE170M, Color

CHROMAS = [(2, 2), (2, 1), (1, 1), (1, 2)]
COLORS = [Color(m, r) for m in (BT709, SMPTE170M, BT2020_NCL) for r in (LIMITED, FULL)]


def smooth(h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[0:h, 0:w]
    return np.dstack((40 + 150 * x / w, 30 + 180 * y / h, 60 + 100 * (x + y) / (w + h))).astype(np.uint8)


def exact_subsample(plane: np.ndarray, chroma: tuple[int, int]) -> np.ndarray:
    """float64, by the definition."""
    out = plane.astype(np.float64)
    if chroma[1] == 2:
        out = np.vstack((out, out[-1:])) if out.shape[0] % 2 else out
        out = (out[0::2] + out[1::2]) / 2
    if chroma[0] == 2:
        wide = np.pad(out, ((0, 0), (1, 1)), mode="edge")
        out = ((wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 4)[:, ::2]
    return out


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("color", COLORS, ids=str)
def test_black_grey_white(color: Color, bits: int) -> None:
    top = (1 << bits) - 1
    black, white = (0, top) if color.range == FULL else (16 << bits - 8, 235 << bits - 8)
    neutral = 128 << bits - 8
    assert solid((0, 0, 0), color, height=100, bits=bits) == (black, neutral, neutral)
    assert solid((255, 255, 255), color, height=100, bits=bits) == (white, neutral, neutral)
    y, u, v = solid((128, 128, 128), color, height=100, bits=bits)
    assert abs(y - (black + (white - black) * 128 / 255)) <= 0.5
    assert (u, v) == (neutral, neutral)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("chroma", CHROMAS)
@pytest.mark.parametrize("color", COLORS, ids=str)
def test_round_trip(color: Color, chroma: tuple[int, int], bits: int) -> None:
    rgb = smooth(75, 101)
    planes = rgb_to_planes(rgb, color, height=75, bits=bits, chroma=chroma)
    assert [p.shape for p in planes[1:]] == [(-(-75 // chroma[1]), -(-101 // chroma[0]))] * 2
    assert {p.dtype for p in planes} == {np.dtype(np.uint8 if bits == 8 else np.uint16)}
    back = planes_to_rgb(planes, color).astype(int)
    # The gradient is gentle: subsampled chroma costs little, but at the borders, where it is repeated.
    assert np.abs(back - rgb)[2:-2, 2:-2].max() <= 3
    small = small_rgb(planes, color, 25, 15).astype(int)
    assert np.abs(small - reduce(rgb, (25, 15)))[1:-1, 1:-1].max() <= 4


@pytest.mark.parametrize("color", [c for c in COLORS if c.matrix != BT2020_NCL], ids=str)
def test_agrees_with_ffmpeg(color: Color) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (8, 16, 3), np.uint8)
    planes = rgb_to_planes(rgb, color, height=8, bits=8, chroma=(1, 1))
    frame = av.VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")
    matrix = 5 if color.matrix == SMPTE170M else color.matrix
    theirs = frame.to_ndarray(format="rgb24", src_colorspace=matrix, src_color_range=color.range, dst_color_range=FULL)
    assert np.abs(theirs.astype(int) - rgb).max() <= 4  # swscale's own tables are coarse
    assert np.abs(planes_to_rgb(planes, color).astype(int) - rgb).max() <= 2


def test_matrices_are_inverse() -> None:
    for bits in (8, 10):
        for full in (False, True):
            forward, back = (f(0.2126, 0.0722, full, bits) for f in (rgb_to_yuv_matrix, yuv_to_rgb_matrix))
            yuv = forward @ [12, 200, 77, 1]
            assert np.allclose(back @ [*yuv, 1], [12, 200, 77])


def test_untagged() -> None:
    assert weights(Color(), 719) == weights(Color(SMPTE170M), 1080) == (0.299, 0.114)
    assert weights(Color(), 720) == weights(Color(BT709), 100) == (0.2126, 0.0722)
    assert tagged(Color(), 480) == Color(5, LIMITED)
    assert tagged(Color(), 1080) == Color(BT709, LIMITED)
    assert tagged(Color(range=FULL, primaries=9), 1080) == Color(BT709, FULL, 9)
    assert tagged(Color(BT2020_NCL, FULL, 9, 16), 480) == Color(BT2020_NCL, FULL, 9, 16)
    # Height decides, not the height of the small picture that is converted.
    assert solid((0, 255, 0), Color(), height=1080, bits=8) == solid((0, 255, 0), Color(BT709), height=1, bits=8)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 1), (5, 5), (6, 8), (33, 47)])
@pytest.mark.parametrize("chroma", CHROMAS)
def test_subsample(chroma: tuple[int, int], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    plane = rng.integers(0, 256, size, np.uint8)
    exact = exact_subsample(plane, chroma)
    for typed, tolerance in (
        (plane, 0.5),
        (plane.astype(np.uint16) * 4, 0.5),
        (plane.astype(np.float32), 1e-4),
    ):
        scale = 4 if typed.dtype == np.uint16 else 1
        out = subsample(typed, chroma)
        assert out.dtype == typed.dtype and out.shape == exact.shape
        assert np.abs(out - exact * scale).max() <= tolerance
    sums, total = subsample_sums(plane, chroma)
    assert sums.dtype == np.uint16 and np.array_equal(sums, np.rint(exact * total))
    # A strided view (a part of a wider picture) is the same.
    wide = np.zeros((size[0] + 2, size[1] + 3), np.uint8)
    wide[1:-1, 2:-1] = plane
    assert np.array_equal(subsample(wide[1:-1, 2:-1], chroma), subsample(plane, chroma))


def test_siting() -> None:
    """A ramp in x keeps its value at even columns (left-sited); in y chroma lies between two rows."""
    plane = np.add.outer(np.zeros(16), 4.0 * np.arange(32)).astype(np.float32)
    assert np.array_equal(subsample(plane, (2, 1))[:, 1:-1], plane[:, 2:-2:2])
    assert np.array_equal(subsample(plane.T.copy(), (2, 2))[:, 1], plane.T[0::2, 0] + 2)
    impulse = np.zeros((2, 8), np.uint8)
    impulse[:, 4] = 200
    assert subsample(impulse, (2, 2)).tolist() == [[0, 0, 100, 0]]
    impulse = np.roll(impulse, 1, 1)
    assert subsample(impulse, (2, 2)).tolist() == [[0, 0, 50, 50]]
    # And back.
    back = enlarge_chroma(subsample(plane, (2, 2)), 32, 16)
    assert np.allclose(back[:, 2:-2], plane[:, 2:-2])
    tall = plane[:, :16].T.copy()
    assert np.allclose(enlarge_chroma(subsample(tall, (2, 2)), 16, 16)[2:-2], tall[2:-2])
