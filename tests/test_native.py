"""The native code beside its formulas in plain NumPy; and that what is shipped is what its source says."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest

from rtbg import native
from rtbg.cli import main
from rtbg.errors import MattingError
from rtbg.grid import Grid
from rtbg.native import build, edge
from tests.media import make_video
from tests.native_parts import fenced, isa, padded  # noqa: F401

# Cells of 8, 12, 6 (which hang over on both sides), 2 and 24 pixels; then grids of one row, and of one column.
SIZES = [(1280, 720), (1920, 1080), (1001, 563), (70, 46), (3840, 100), (2600, 16), (16, 2600)]
CELLS = 160


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
    """A file of its own says of what; `rtbg.native.build --check` proves it."""
    assert (native.FOLDER / "source.sha256").read_text().split()[0] == native.source_hash()
    for target in native.TARGETS:
        assert (native.FOLDER / native.library_name(target)).stat().st_size < 400_000


def test_it_builds_the_same_again():
    """Byte by byte, for this system and one that is none of ours; `.ci/run` asks for all."""
    pytest.importorskip("ziglang", reason="the compiler is not installed: pip install '.[native]'")
    if native.isa() != native.ISAS[0]:
        pytest.skip("once is enough")
    for target in {"-".join(native.this_target()), "windows-x86_64"}:
        command = [sys.executable, "-m", "rtbg.native.build", "--check", "--only", target]
        done = subprocess.run(command, capture_output=True, text=True, cwd=native.FOLDER.parents[1])
        assert done.returncode == 0 and done.stdout.strip().endswith("as shipped"), done.stderr


def test_what_was_not_built_of_this_source_is_refused(monkeypatch, tmp_path):
    pytest.importorskip("ziglang", reason="the compiler is not installed: pip install '.[native]'")
    if native.isa() != native.ISAS[0]:
        pytest.skip("once is enough")
    target = native.this_target()
    path = shutil.copytree(native.FOLDER, tmp_path / "native") / native.library_name(target)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(build, "FOLDER", tmp_path / "native")
    with pytest.raises(SystemExit, match="is not what its source makes"):
        build.main(["--check", "--only", "-".join(target)])
