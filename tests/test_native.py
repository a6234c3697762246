"""The native code beside its formulas in plain NumPy; and that what is shipped is what its source says."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from rtbg import native
from rtbg.cli import main
from rtbg.errors import MattingError
from rtbg.grid import Grid, Scratch
from rtbg.native import edge, grid
from tests.media import make_video

# Cells of 8, 12, 6 (which hang over on both sides), 2 and 24 pixels; then grids of one row, and of one column.
SIZES = [(1280, 720), (1920, 1080), (1001, 563), (70, 46), (3840, 100), (2600, 16), (16, 2600)]
CELLS = 160


@pytest.fixture(params=native.ISAS, autouse=True)
def isa(request, monkeypatch):
    """Every test with every set of instructions that this processor has."""
    monkeypatch.setenv("RTBG_ISA", request.param)
    native.function.cache_clear()
    if native.isa() != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native.function.cache_clear()
    native.load.cache_clear()


def needed_cells(over: Grid, rng: np.random.Generator) -> np.ndarray:
    """Lone cells, runs, all along the borders, and one whole line."""
    needed = (rng.random(over.shape) < 0.1).astype(np.uint8)
    needed[[0, -1]] = rng.integers(0, 2, (2, over.shape[1]))
    needed[:, [0, -1]] = rng.integers(0, 3, (over.shape[0], 2))
    needed[over.shape[0] // 2] = 1
    return needed


def pixels_of(needed: np.ndarray, over: Grid, kx: int = 1, ky: int = 1) -> np.ndarray:
    """bool: the samples that lie in these cells."""
    tall, wide = over.scale // ky, over.scale // kx
    whole = np.repeat(np.repeat(needed > 0, tall, 0), wide, 1)
    return whole[: -(-over.height // ky), : -(-over.width // kx)]


def enlarged(cells: np.ndarray, over: Grid, kx: int = 1, ky: int = 1) -> np.ndarray:
    """As OpenCV enlarges the over."""
    size = cells.shape[1] * over.scale // kx, cells.shape[0] * over.scale // ky
    whole = cv2.resize(cells, size, interpolation=cv2.INTER_LINEAR)
    return whole[: -(-over.height // ky), : -(-over.width // kx)]


FENCE = 0xA5


def padded(plane: np.ndarray) -> np.ndarray:
    """The same values in memory whose lines do not follow one another, with a fence around all of it."""
    height, width = plane.shape
    wide = np.full((height + 2, width + 7), FENCE, plane.dtype)
    inside = wide[1:-1, 3:-4]
    inside[:] = plane
    return inside


def fenced(plane: np.ndarray) -> bool:
    """Whether what `padded` put around a plane is as it was."""
    wide = plane.base.copy()
    wide[1:-1, 3:-4] = FENCE
    return bool((wide == FENCE).all())


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("top", [255, 1023])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_follow(size, top, past):
    rng = np.random.default_rng(3)
    over = Grid.over(*size, CELLS, even=True)
    shape = size[::-1]
    luma = padded(rng.integers(0, top + 1, shape).astype(np.uint8 if top < 256 else np.uint16))
    alpha = padded(rng.integers(0, 256, shape).astype(np.uint8))
    rise = (rng.normal(0, 0.5, over.shape) * 255 / top).astype(np.float32)
    base = rng.normal(0, 30, over.shape).astype(np.float32)
    binomial = np.array([1, 4, 6, 4, 1], np.float32) / 16
    calm = cv2.sepFilter2D(luma.astype(np.float32), -1, binomial, binomial, borderType=cv2.BORDER_REPLICATE)
    want = np.clip(alpha + enlarged(rise, over) * calm + enlarged(base, over), 0, 255)
    before = np.clip(np.rint(want) + rng.integers(-3, 4, shape), 0, 255).astype(np.uint8)
    new = np.rint(want)
    if past:
        new = np.where((np.abs(before - new) <= 1) & (new > 0) & (new < 255), before, new)
    needed = needed_cells(over, rng)
    inside = pixels_of(needed, over)
    made = padded(alpha)
    found = np.full(over.shape, 7, np.uint8), np.full(over.shape, 9, np.uint8), np.full(over.shape, 5, np.float32)
    edge.follow(over, needed, luma, made, before if past else None, (rise, base), 1, found)
    np.testing.assert_array_equal(made[~inside], alpha[~inside])
    assert fenced(made)
    differs = np.abs(made.astype(int) - new)[inside]
    sure = (np.abs(want - np.floor(want) - 0.5) > 0.01)[inside]  # a half may go either way, and then be held or not
    assert inside.any() and differs[sure].max() == 0
    assert differs.max() <= 2
    least, most, share = found
    s = over.scale
    for y, x in np.argwhere(needed):
        part = made[y * s : (y + 1) * s, x * s : (x + 1) * s]
        assert (least[y, x], most[y, x]) == (part.min(), part.max())
        assert share[y, x] == pytest.approx(part.mean() / 255, abs=1e-6)
    for values, kept in zip(found, (7, 9, 5), strict=True):
        assert (values[needed == 0] == kept).all()


@pytest.mark.parametrize("chroma", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("top", [255, 1023])
@pytest.mark.parametrize(("own", "behind"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("size", [SIZES[0], *SIZES[2:4], *SIZES[5:]], ids=str)
def test_paint(size, own, behind, top, chroma):
    rng = np.random.default_rng(5)
    over = Grid.over(*size, CELLS, even=True)
    code = np.uint8 if top < 256 else np.uint16
    width, height = size
    alpha = rng.integers(0, 256, (height, width)).astype(np.uint8)
    alpha[: height // 3] = 0
    alpha[height // 3 : height // 2] = 255
    alpha = padded(alpha)
    needed = needed_cells(over, rng)
    pictures, backs, outs, people, rest, want = [], [], [], [], [], []
    for plane in range(3):
        kx, ky = (1, 1) if plane == 0 else chroma
        shape = -(-height // ky), -(-width // kx)
        picture, back, out = (padded(rng.integers(0, top + 1, shape).astype(code)) for _ in range(3))
        person, apart = rng.uniform(0, top, (2, *over.shape)).astype(np.float32)
        apart -= top / 2
        whole = np.pad(alpha, ((0, -height % ky), (0, -width % kx)), mode="edge").astype(np.float64)
        rows = whole.reshape(shape[0], ky, -1).mean(1)
        mean = rows.reshape(*shape, kx).mean(2) / 255
        weight = mean
        if kx == 2:  # left-sited, as `color.subsample` has it: [1 2 1] around the even samples
            more = np.pad(rows, ((0, 0), (1, 0)), mode="edge")
            weight = (more[:, :-1:2] + 2 * rows[:, ::2] + rows[:, 1::2]) / 4 / 255
        colour = picture.astype(np.float64)
        if own:
            change = enlarged(person, over, kx, ky) - picture + mean * enlarged(apart, over, kx, ky)
            colour = np.clip(picture + (1 - mean) * (weight > 0) * change, 0, top)
        exact = weight * colour + (1 - weight) * back if behind else colour
        want.append(np.where(pixels_of(needed, over, kx, ky), exact, out))
        for kept, one in zip((pictures, backs, outs, people, rest), (picture, back, out, person, apart), strict=True):
            kept.append(one)
    before = [o.copy() for o in outs]
    edge.paint(
        over, needed, alpha, pictures, outs, chroma=chroma,
        own=(people, rest) if own else None, behind=backs if behind else None,
    )  # fmt: skip
    assert all(map(fenced, outs))
    for k, (made, exact) in enumerate(zip(outs, want, strict=True)):
        assert np.abs(made - exact).max() <= 0.52
        inside = pixels_of(needed, over, *((1, 1) if k == 0 else chroma))
        np.testing.assert_array_equal(made[~inside], before[k][~inside])
    if behind:  # nobody: what is behind, exactly; nobody else: the camera's
        inside = pixels_of(needed, over)
        np.testing.assert_array_equal(outs[0][inside & (alpha == 0)], backs[0][inside & (alpha == 0)])
        np.testing.assert_array_equal(outs[0][inside & (alpha == 255)], pictures[0][inside & (alpha == 255)])


@pytest.mark.parametrize("chroma", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_copy(size, dtype, chroma):
    rng = np.random.default_rng(6)
    over = Grid.over(*size, CELLS, even=True)
    full = needed_cells(over, rng)
    shapes = [size[::-1]] + [(-(-size[1] // chroma[1]), -(-size[0] // chroma[0]))] * 2
    picture, behind = ([padded(rng.integers(0, 256, s).astype(dtype)) for s in shapes] for _ in range(2))
    out = [padded(np.zeros(s, dtype)) for s in shapes]
    edge.copy(over, full, picture, behind, out, chroma)
    for k, made in enumerate(out):
        inside = pixels_of(full, over, *((1, 1) if k == 0 else chroma))
        np.testing.assert_array_equal(made, np.where(inside, picture[k], behind[k]))
        assert fenced(made)


# ---------------------------------------------------------------- the grid's estimates


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
        for (y, x), mean in np.ndenumerate(means):
            exact = plane[y * side : (y + 1) * side, x * side : (x + 1) * side].mean()
            assert mean == pytest.approx(exact, rel=1e-6)
        if half is not None:
            np.testing.assert_array_equal(half, cv2.resize(plane, half.shape[::-1], interpolation=cv2.INTER_AREA))
    for bad in (0, 3, 258):
        with pytest.raises(ValueError, match="even side"):
            grid.blocks(plane, bad, None, Scratch())
    with pytest.raises(ValueError, match=r"is needed|no half"):
        grid.blocks(plane, side, np.empty((height // 2 + 1, width // 2), np.uint8), Scratch())


def only_read(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def test_other_arrays_are_refused():
    """Whatever it is told, it stays inside the arrays."""
    over = Grid.over(64, 48, 16, even=True)
    cells, values = np.ones(over.shape, np.uint8), np.zeros(over.shape, np.float32)
    luma, alpha = np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8)
    half = np.zeros((24, 32), np.uint8)
    found = cells.copy(), cells.copy(), values.copy()
    good = [cells, luma, alpha, None, (values, values), 1, found]
    edge.follow(over, *good)
    for at, bad in (
        (0, cells[:-1]), (0, cells[:, ::-1]), (1, luma[:, ::2]), (1, luma[:-1]), (2, alpha.astype(np.uint16)),
        (3, alpha[:, :-1]), (4, (values, values[:, :-1])), (4, (values, values.astype(float))), (6, found[::-1]),
        (1, luma > 0), (1, luma.astype(np.float32)), (2, only_read(alpha)), (6, (*found[:2], only_read(values))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"is needed, not|uint8 or uint16|only to be read"):
            edge.follow(over, *[*good[:at], bad, *good[at + 1 :]])
    planes, three = (luma, half, half), [values] * 3
    edge.paint(over, cells, alpha, planes, planes, chroma=(2, 2), behind=planes)
    edge.paint(over, cells, alpha, planes, planes, chroma=(2, 2), own=(three, three))
    for given, chroma, says in (
        ((luma, half, half[:-1]), (2, 2), "is needed"), ((luma, luma, luma), (2, 2), "is needed"),
        (tuple(p.astype(np.float32) for p in planes), (2, 2), "uint8 or uint16"), (planes, (4, 1), "chroma"),
        ((luma, half), (2, 2), "three"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            edge.paint(over, cells, alpha, given, planes, chroma=chroma, behind=planes)
        with pytest.raises(ValueError, match=says):
            edge.copy(over, cells, given, planes, planes, chroma)
    for behind in ((luma,), (luma, half, only_read(half).astype(np.uint16))):
        with pytest.raises(ValueError, match=r"three|is needed"):
            edge.paint(over, cells, alpha, planes, planes, chroma=(2, 2), behind=behind)
        with pytest.raises(ValueError, match=r"three|is needed"):
            edge.copy(over, cells, planes, behind, planes, (2, 2))
    with pytest.raises(ValueError, match="only to be read"):
        edge.copy(over, cells, planes, planes, (luma, half, only_read(half)), (2, 2))
    with pytest.raises(ValueError, match="three"):
        edge.paint(over, cells, alpha, planes, planes, chroma=(2, 2), own=(three, three[:1]))
    with pytest.raises(ValueError, match="nothing to paint"):
        edge.paint(over, cells, alpha, planes, planes, chroma=(2, 2))
    with pytest.raises(ValueError, match="whole samples"):
        edge.copy(Grid(64, 48, 5), np.ones((10, 13), np.uint8), planes, planes, planes, (2, 2))
    for empty in (values[:0], np.zeros((3, 5), np.float32)[:, :0], np.zeros((3, 0), np.float32)):
        with pytest.raises(ValueError, match="is needed"):
            grid.fit([empty] * 3, empty, 3, (1e-3, 1e-4), Scratch())


def test_lines_may_run_upwards():
    """A plane that is stored from the bottom up."""
    rng = np.random.default_rng(13)
    over = Grid.over(64, 48, 16, even=True)
    full = needed_cells(over, rng)
    a, b = ([rng.integers(0, 256, (48, 64)).astype(np.uint8)[::-1] for _ in range(3)] for _ in range(2))
    out = [np.empty((48, 64), np.uint8) for _ in range(3)]
    edge.copy(over, full, a, b, out, (1, 1))
    for made, one, two in zip(out, a, b, strict=True):
        np.testing.assert_array_equal(made, np.where(pixels_of(full, over), one, two))


def test_two_threads_share_no_memory():
    rng = np.random.default_rng(7)
    over = Grid.over(640, 360, CELLS, even=True)
    cells = np.ones(over.shape, np.uint8)
    values = [[rng.uniform(0, 255, over.shape).astype(np.float32) for _ in range(3)] for _ in range(2)]
    alpha = rng.integers(0, 256, (360, 640)).astype(np.uint8)
    given = [[rng.integers(0, 256, (360, 640)).astype(np.uint8) for _ in range(3)] for _ in range(2)]
    failed, want = [], []

    def once(k: int) -> list[np.ndarray]:
        out = [np.empty_like(p) for p in given[k]]
        edge.paint(over, cells, alpha, given[k], out, chroma=(1, 1), own=(values[k], values[k]), behind=given[1 - k])
        return out

    def work(k: int) -> None:
        for _ in range(60):
            if any((a != b).any() for a, b in zip(once(k), want[k], strict=True)):
                failed.append(k)

    want.extend(once(k) for k in range(2))
    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.usefixtures("settings")
def test_where_there_is_none_it_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.load.cache_clear()
    with pytest.raises(MattingError, match=r"cannot be loaded \(.*rtbg.native.build --only") as refused:
        native.load()
    assert "\n" not in str(refused.value)
    source, out = make_video(tmp_path / "in.mp4", size=(64, 48), frames=3), tmp_path / "out.mp4"
    assert main([str(source), "-o", str(out), "-q"]) == 1 and list(tmp_path.iterdir()) == [source]
    said = capsys.readouterr().err.strip()
    assert said.startswith("rtbg: ") and "rtbg.native.build" in said and "\n" not in said


def test_what_is_shipped_was_built_of_this_source():
    """A file of its own says of what; `test_it_builds_the_same_again` proves it, where the compiler is."""
    assert (native.FOLDER / "source.sha256").read_text().split()[0] == native.source_hash()
    for target in native.TARGETS:
        assert (native.FOLDER / native.library_name(target)).stat().st_size < 400_000


def test_it_builds_the_same_again(tmp_path, isa):
    """Byte by byte, for every system; and nothing is needed to load it: no other library, no symbol."""
    pytest.importorskip("ziglang", reason="the compiler is not installed: pip install '.[native]'")
    if isa != native.ISAS[0]:
        pytest.skip("once is enough")
    command = [sys.executable, "-m", "rtbg.native.build", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=native.FOLDER.parents[1], env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    for target in native.TARGETS:
        name = native.library_name(target)
        built, shipped = (hashlib.sha256((Path(f) / name).read_bytes()).digest() for f in (tmp_path, native.FOLDER))
        assert built == shipped, f"{name} is not what its source makes: python -m rtbg.native.build"
