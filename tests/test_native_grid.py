"""The native code's estimates on the grid beside their formulas in plain NumPy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rtbg.grid import Scratch
from rtbg.native import grid
from tests.native_parts import isa, padded  # noqa: F401


def fitted(guides: list[np.ndarray], p: np.ndarray, radius: int, noise: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """He, Sun and Tang 2010, equations 19 to 21, in doubles: the slope of luma, and the rest."""

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (2 * radius + 1, 2 * radius + 1))

    guides, p = [g.astype(np.float64) for g in guides], p.astype(np.float64)
    mean, mean_p = np.stack([blur(g) for g in guides], 2), blur(p)
    across = np.stack([blur(g * p) for g in guides], 2) - mean * mean_p[..., None]
    among = np.array([[blur(a * b) for b in guides] for a in guides]).transpose(2, 3, 0, 1)
    among = among - mean[..., :, None] * mean[..., None, :] + np.diag([noise[0], noise[1], noise[1]])
    slopes = np.linalg.solve(among, across[..., None])[..., 0]
    offset = blur(mean_p - (slopes * mean).sum(2))
    slopes = np.stack([blur(np.ascontiguousarray(slopes[..., k])) for k in range(3)], 2)
    return slopes[..., 0], offset + slopes[..., 1] * guides[1] + slopes[..., 2] * guides[2]


SHAPES = [(90, 160), (68, 121), (5, 40), (30, 2), (1, 9), (1, 1)]


@pytest.mark.parametrize("radius", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fit(shape, radius):
    rng = np.random.default_rng(8)
    wide = shape[0], shape[1] + 4
    guides = [cv2.GaussianBlur(rng.random(wide, np.float32), (0, 0), 1.5)[:, 2:-2] for _ in range(3)]
    p = (guides[0] + rng.normal(0, 0.05, shape) > 0.5).astype(np.float32)
    noise = 1.2e-3, 0.7e-4
    slope, offset = grid.fit(guides, p, radius, noise, Scratch())
    want = fitted(guides, p, radius, noise)
    for made, exact in zip((slope, offset), want, strict=True):
        assert np.abs(made - exact).max() <= 1e-3 * max(1.0, np.abs(exact).max())


def gathered(
    picture: np.ndarray, weight: np.ndarray, near: np.ndarray, far: int, faint: float, hardly: float
) -> np.ndarray:
    """Weighted means of a picture (rows, columns, 3) around each cell."""
    stack = np.dstack((picture, np.ones_like(weight))) * weight[..., None]
    out = cv2.sepFilter2D(stack, -1, near, near)
    if far:
        out = out + faint * cv2.blur(stack, (far, far)) + faint**2 * hardly * stack.mean((0, 1)) + 1e-30
    return out[..., :3] / out[..., 3:]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_colours(shape):
    rng = np.random.default_rng(9)
    cells = [rng.uniform(0, 255, (shape[0], shape[1] + 3)).astype(np.float32)[:, 2:-1] for _ in range(3)]
    share = np.clip(cv2.GaussianBlur(rng.random(shape, np.float32), (0, 0), 2) * 6 - 2.5, 0, 1).astype(np.float32)
    near, far, faint, hardly, unsure = (0.7, 0.15), 13, 0.1, 1e-6, 0.8
    whole = np.full((2, 3, shape[0] + 2, shape[1] + 5), 7, np.float32)
    person, apart = (list(f[:, 1:-1, 2:-3]) for f in whole)
    grid.colours(
        cells, share, person, apart, near=near, far=far, weights=(faint, hardly), sure=(unsure, 1.0), scratch=Scratch()
    )
    taps = np.array([near[1], near[0], near[1]])
    picture, shares = np.stack(cells, 2).astype(np.float64), (share.astype(np.float64), 1.0 - share)
    weights = [s * hardly + np.clip((s - unsure) / (1 - unsure), 0, 1) for s in shares]
    first = [gathered(picture, w, taps, far, faint, hardly) for w in weights]
    mine, room = (
        gathered(one + s[..., None] * (picture - (two + s[..., None] * (one - two))), s + 1e-4, taps, 0, 0, 0)
        for s, one, two in zip(shares, first, first[::-1], strict=True)
    )
    for made, exact in ((person, mine), (apart, mine - room)):
        np.testing.assert_allclose(np.stack(made, 2), exact, atol=0.02)
    outside = np.ones(whole.shape, bool)
    outside[:, :, 1:-1, 2:-3] = False
    assert (whole[outside] == 7).all()


@pytest.mark.parametrize("shape", [(192, 320), (61, 43), (4, 5), (1, 7), (1, 1)], ids=str)
def test_smooth(shape):
    rng = np.random.default_rng(10)
    matte, mean = rng.random((2, *shape), np.float32)
    grey = rng.integers(0, 256, shape).astype(np.uint8)
    reference = np.clip(cv2.boxFilter(grey, cv2.CV_32F, (3, 3)) + rng.normal(0, 4, shape), 0, 255).astype(np.float32)
    still, astray, disagree, moved, noise, share = 0.05, 0.8, (0.1, 0.3), (0.5, 1.9), (2.0, 0.6), 0.3
    picture = cv2.boxFilter(grey, cv2.CV_32F, (3, 3))
    change = cv2.blur(np.abs(picture - reference), (5, 5))
    off = noise[0] * min(float(np.sort(change[::4, ::4].ravel())[change[::4, ::4].size // 2]), noise[1])
    weight = (
        np.clip((np.abs(matte - mean) - disagree[0]) / (disagree[1] - disagree[0]), 0, 1) * (astray - still) + still
    )
    weight = np.maximum(weight, np.clip((change - off - moved[0]) / (moved[1] - moved[0]), 0, 1))
    want = mean + (matte - mean) * weight, reference + (picture - reference) * share
    given = matte.copy(), grey.copy()
    made, weighed = grid.smooth(
        matte, grey, mean, reference,
        still=still, astray=astray, disagree=disagree, moved=moved, noise=noise, share=share, scratch=Scratch(),
    )  # fmt: skip
    np.testing.assert_allclose(made, picture, atol=1e-3)
    np.testing.assert_allclose(weighed, weight, atol=1e-4)
    for array, exact in zip((mean, reference), want, strict=True):
        np.testing.assert_allclose(array, exact, atol=1e-3)
    for array, kept in zip((matte, grey), given, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_the_median_is_one():
    """Of many values, few and equal ones: what moves less than twice the noise does not count."""
    rng = np.random.default_rng(11)
    for values in (rng.random(5000), np.repeat([1.0, 2.0], 800), np.arange(999.0), -np.arange(500.0), np.zeros(64)):
        shape = len(values) // 2 * 4, 8
        grey = np.zeros(shape, np.uint8)
        level = np.repeat(np.repeat(values[: len(values) // 2 * 2].reshape(-1, 2), 4, 0), 4, 1).astype(np.float32)
        reference = np.abs(level)
        change = cv2.blur(reference, (5, 5))
        middle = float(np.sort(change[::4, ::4].ravel())[change[::4, ::4].size // 2])
        _, weight = grid.smooth(
            np.zeros(shape, np.float32), grey, np.zeros(shape, np.float32), reference.copy(),
            still=0.0, astray=0.0, disagree=(1.0, 2.0), moved=(0.0, 1e4), noise=(1.0, 1e9), share=0.0,
            scratch=Scratch(),
        )  # fmt: skip
        np.testing.assert_allclose(weight, np.clip((change - middle) / 1e4, 0, 1), atol=1e-6)


@pytest.mark.parametrize("side", [2, 8, 256])
@pytest.mark.parametrize("size", [(1280, 720), (960, 540), (31, 18), (3, 1), (1, 1)], ids=str)
def test_blocks(size, side):
    rng = np.random.default_rng(12)
    width, height = size
    for plane in (
        padded(rng.integers(0, 256, (height, width)).astype(np.uint8)),
        np.full((height, width), 255, np.uint8),
    ):
        even = not (width % 2 or height % 2)
        half = np.empty((height // 2, width // 2), np.uint8) if even else None
        means = grid.blocks(plane, side, half, Scratch())
        assert means.shape == (-(-height // side), -(-width // side))
        starts = [np.arange(0, n, side) for n in plane.shape]
        sums = np.add.reduceat(np.add.reduceat(plane.astype(np.int64), starts[0], 0), starts[1], 1)
        counts = [np.minimum(side, n - s) for s, n in zip(starts, plane.shape, strict=True)]
        np.testing.assert_allclose(means, sums / np.multiply.outer(*counts), rtol=1e-6)
        if half is not None:
            np.testing.assert_array_equal(half, cv2.resize(plane, half.shape[::-1], interpolation=cv2.INTER_AREA))
    for bad in (0, 3, 258):
        with pytest.raises(ValueError, match="even side"):
            grid.blocks(plane, bad, None, Scratch())
    with pytest.raises(ValueError, match=r"is needed|no half"):
        grid.blocks(plane, side, np.empty((height // 2 + 1, width // 2), np.uint8), Scratch())


def test_nothing_of_no_size():
    values = np.zeros((3, 4), np.float32)
    for empty in (values[:0], np.zeros((3, 5), np.float32)[:, :0], np.zeros((3, 0), np.float32)):
        with pytest.raises(ValueError, match="is needed"):
            grid.fit([empty] * 3, empty, 3, (1e-3, 1e-4), Scratch())
