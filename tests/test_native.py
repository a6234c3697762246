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
from rtbg.errors import MattingError
from rtbg.grid import Grid

# Cells of 8, 12, 6 (which hang over on both sides), 2 and 24 pixels.
SIZES = [(1280, 720), (1920, 1080), (1001, 563), (70, 46), (3840, 100)]
CELLS = 160


@pytest.fixture(params=native.ISAS[: native.load().rtbg_isa() + 1], autouse=True)
def isa(request, monkeypatch):
    """Every test with every set of instructions that this processor has."""
    monkeypatch.setenv("RTBG_ISA", request.param)
    native._functions.cache_clear()
    yield request.param
    native._functions.cache_clear()


def needed_cells(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Lone cells, runs, all along the borders, and one whole line."""
    needed = (rng.random(grid.shape) < 0.1).astype(np.uint8)
    needed[[0, -1]] = rng.integers(0, 2, (2, grid.shape[1]))
    needed[:, [0, -1]] = rng.integers(0, 3, (grid.shape[0], 2))
    needed[grid.shape[0] // 2] = 1
    return needed


def pixels_of(needed: np.ndarray, grid: Grid, kx: int = 1, ky: int = 1) -> np.ndarray:
    """bool: the samples that lie in these cells."""
    tall, wide = grid.scale // ky, grid.scale // kx
    whole = np.repeat(np.repeat(needed > 0, tall, 0), wide, 1)
    return whole[: -(-grid.height // ky), : -(-grid.width // kx)]


def enlarged(cells: np.ndarray, grid: Grid, kx: int = 1, ky: int = 1) -> np.ndarray:
    """As OpenCV enlarges the grid."""
    size = cells.shape[1] * grid.scale // kx, cells.shape[0] * grid.scale // ky
    whole = cv2.resize(cells, size, interpolation=cv2.INTER_LINEAR)
    return whole[: -(-grid.height // ky), : -(-grid.width // kx)]


def padded(plane: np.ndarray) -> np.ndarray:
    """The same values in memory whose lines do not follow one another."""
    wide = np.zeros((plane.shape[0], plane.shape[1] + 7), plane.dtype)
    wide[:, 3:-4] = plane
    return wide[:, 3:-4]


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("top", [255, 1023])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_follow(size, top, past):
    rng = np.random.default_rng(3)
    grid = Grid.over(*size, CELLS, even=True)
    shape = size[::-1]
    luma = padded(rng.integers(0, top + 1, shape).astype(np.uint8 if top < 256 else np.uint16))
    alpha = padded(rng.integers(0, 256, shape).astype(np.uint8))
    rise = (rng.normal(0, 0.5, grid.shape) * 255 / top).astype(np.float32)
    base = rng.normal(0, 30, grid.shape).astype(np.float32)
    binomial = np.array([1, 4, 6, 4, 1], np.float32) / 16
    calm = cv2.sepFilter2D(luma.astype(np.float32), -1, binomial, binomial, borderType=cv2.BORDER_REPLICATE)
    want = np.clip(alpha + enlarged(rise, grid) * calm + enlarged(base, grid), 0, 255)
    before = np.clip(np.rint(want) + rng.integers(-3, 4, shape), 0, 255).astype(np.uint8)
    new = np.rint(want)
    if past:
        new = np.where((np.abs(before - new) <= 1) & (new > 0) & (new < 255), before, new)
    needed = needed_cells(grid, rng)
    inside = pixels_of(needed, grid)
    made = alpha.copy()
    found = np.full(grid.shape, 7, np.uint8), np.full(grid.shape, 9, np.uint8), np.full(grid.shape, 5, np.float32)
    native.follow(grid, needed, luma, made, before if past else None, (rise, base), 1, found)
    np.testing.assert_array_equal(made[~inside], alpha[~inside])
    differs = np.abs(made.astype(int) - new)[inside]
    sure = (np.abs(want - np.floor(want) - 0.5) > 0.01)[inside]  # a half may go either way, and then be held or not
    assert inside.any() and differs[sure].max() == 0
    assert differs.max() <= 2
    least, most, share = found
    s = grid.scale
    for y, x in np.argwhere(needed):
        part = made[y * s : (y + 1) * s, x * s : (x + 1) * s]
        assert (least[y, x], most[y, x]) == (part.min(), part.max())
        assert share[y, x] == pytest.approx(part.mean() / 255, abs=1e-6)
    for values, kept in zip(found, (7, 9, 5), strict=True):
        assert (values[needed == 0] == kept).all()


@pytest.mark.parametrize("chroma", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("top", [255, 1023])
@pytest.mark.parametrize(("own", "behind"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_paint(size, own, behind, top, chroma):
    rng = np.random.default_rng(5)
    grid = Grid.over(*size, CELLS, even=True)
    code = np.uint8 if top < 256 else np.uint16
    width, height = size
    alpha = rng.integers(0, 256, (height, width)).astype(np.uint8)
    alpha[: height // 3] = 0
    alpha[height // 3 : height // 2] = 255
    alpha = padded(alpha)
    needed = needed_cells(grid, rng)
    pictures, backs, outs, people, rest, want = [], [], [], [], [], []
    for plane in range(3):
        kx, ky = (1, 1) if plane == 0 else chroma
        shape = -(-height // ky), -(-width // kx)
        picture, back, out = (padded(rng.integers(0, top + 1, shape).astype(code)) for _ in range(3))
        person, apart = rng.uniform(0, top, (2, *grid.shape)).astype(np.float32)
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
            change = enlarged(person, grid, kx, ky) - picture + mean * enlarged(apart, grid, kx, ky)
            colour = np.clip(picture + (1 - mean) * (weight > 0) * change, 0, top)
        exact = weight * colour + (1 - weight) * back if behind else colour
        want.append(np.where(pixels_of(needed, grid, kx, ky), exact, out))
        for kept, one in zip((pictures, backs, outs, people, rest), (picture, back, out, person, apart), strict=True):
            kept.append(one)
    before = [o.copy() for o in outs]
    native.paint(
        grid, needed, alpha, pictures, outs, chroma=chroma,
        own=(people, rest) if own else None, behind=backs if behind else None,
    )  # fmt: skip
    for k, (made, exact) in enumerate(zip(outs, want, strict=True)):
        assert np.abs(made - exact).max() <= 0.52
        inside = pixels_of(needed, grid, *((1, 1) if k == 0 else chroma))
        np.testing.assert_array_equal(made[~inside], before[k][~inside])
    if behind:  # nobody: what is behind, exactly; nobody else: the camera's
        inside = pixels_of(needed, grid)
        np.testing.assert_array_equal(outs[0][inside & (alpha == 0)], backs[0][inside & (alpha == 0)])
        np.testing.assert_array_equal(outs[0][inside & (alpha == 255)], pictures[0][inside & (alpha == 255)])


@pytest.mark.parametrize("chroma", [(1, 1), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_copy(size, dtype, chroma):
    rng = np.random.default_rng(6)
    grid = Grid.over(*size, CELLS, even=True)
    full = needed_cells(grid, rng)
    shapes = [size[::-1]] + [(-(-size[1] // chroma[1]), -(-size[0] // chroma[0]))] * 2
    picture, behind = ([padded(rng.integers(0, 256, s).astype(dtype)) for s in shapes] for _ in range(2))
    out = [np.empty(s, dtype) for s in shapes]
    native.copy(grid, full, picture, behind, out, chroma)
    for k, made in enumerate(out):
        inside = pixels_of(full, grid, *((1, 1) if k == 0 else chroma))
        np.testing.assert_array_equal(made, np.where(inside, picture[k], behind[k]))


def test_other_arrays_are_refused():
    """Whatever it is told, it stays inside the arrays."""
    grid = Grid.over(64, 48, 16, even=True)
    cells, values = np.ones(grid.shape, np.uint8), np.zeros(grid.shape, np.float32)
    luma, alpha = np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8)
    half = np.zeros((24, 32), np.uint8)
    found = cells.copy(), cells.copy(), values.copy()
    good = [cells, luma, alpha, None, (values, values), 1, found]
    native.follow(grid, *good)
    for at, bad in (
        (0, cells[:-1]), (0, cells[:, ::-1]), (1, luma[:, ::2]), (1, luma[:-1]), (2, alpha.astype(np.uint16)),
        (3, alpha[:, :-1]), (4, (values, values[:, :-1])), (4, (values, values.astype(float))), (6, found[::-1]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is needed, not"):
            native.follow(grid, *[*good[:at], bad, *good[at + 1 :]])
    planes = luma, half, half
    native.paint(grid, cells, alpha, planes, planes, chroma=(2, 2))
    for given, chroma, says in (
        ((luma, half, half[:-1]), (2, 2), "is needed"), ((luma, luma, luma), (2, 2), "is needed"),
        (tuple(p.astype(np.float32) for p in planes), (2, 2), "uint8 or uint16"), (planes, (4, 1), "chroma"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            native.paint(grid, cells, alpha, given, planes, chroma=chroma)
        with pytest.raises(ValueError, match=says):
            native.copy(grid, cells, given, planes, planes, chroma)
    with pytest.raises(ValueError, match="whole samples"):
        native.copy(Grid(64, 48, 5), np.ones((10, 13), np.uint8), planes, planes, planes, (2, 2))


def test_two_threads_share_no_memory():
    rng = np.random.default_rng(7)
    grid = Grid.over(640, 360, CELLS, even=True)
    cells = np.ones(grid.shape, np.uint8)
    values = [[rng.uniform(0, 255, grid.shape).astype(np.float32) for _ in range(3)] for _ in range(2)]
    alpha = rng.integers(0, 256, (360, 640)).astype(np.uint8)
    given = [[rng.integers(0, 256, (360, 640)).astype(np.uint8) for _ in range(3)] for _ in range(2)]
    failed, want = [], []

    def once(k: int) -> list[np.ndarray]:
        out = [np.empty_like(p) for p in given[k]]
        native.paint(grid, cells, alpha, given[k], out, chroma=(1, 1), own=(values[k], values[k]), behind=given[1 - k])
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


def test_where_there_is_none_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    with pytest.raises(MattingError, match=r"cannot be loaded \(.*rtbg.native.build --only") as refused:
        native.load()
    assert "\n" not in str(refused.value)


def test_what_is_shipped_was_built_of_this_source():
    """A file of its own says of what; `test_it_builds_the_same_again` proves it, where the compiler is."""
    assert (native.FOLDER / "source.sha256").read_text().split()[0] == native.source_hash()
    for target in native.TARGETS:
        assert (native.FOLDER / native.library_name(target)).stat().st_size < 300_000


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
