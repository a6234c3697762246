"""rtbg.upsampling and rtbg.grid: the matte follows the picture's edges in a band, and nothing outside it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rtbg import upsampling
from rtbg.grid import EDGES, MEANS, Grid
from rtbg.native.edge import follow
from rtbg.upsampling import LEAST, Edge, Upsampler, shaped

SMALL = (176, 320)


def hairy(width: int = 1280, height: int = 720, bits: int = 8) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(true alpha, planes): a dark head with strands of hair and a straight shoulder before a bright wall."""
    rng = np.random.default_rng(0)
    unit = height / 720
    alpha = np.zeros((height, width), np.uint8)
    centre = np.array((0.5 * width, 0.4 * height))
    cv2.circle(alpha, tuple(int(c) for c in centre), round(150 * unit), 255, -1, cv2.LINE_AA)
    for angle in rng.uniform(0, 2 * np.pi, 160):
        way = np.array((np.cos(angle), np.sin(angle)))
        a, b = centre + way * 140 * unit, centre + (way + rng.normal(0, 0.1, 2)) * rng.uniform(160, 185) * unit
        cv2.line(alpha, a.astype(int).tolist(), b.astype(int).tolist(), 255, max(1, round(2 * unit)), cv2.LINE_AA)
    cv2.rectangle(alpha, (int(0.25 * width), int(0.72 * height)), (int(0.75 * width), height), 255, -1)
    true = cv2.GaussianBlur(alpha, (3, 3), 0).astype(np.float32) / 255
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / unit
    wall = 170 + 12 * np.sin(x / 9) * np.cos(y / 7)  # texture that must not be copied
    luma = true * (50 + 6 * np.sin(x / 5)) + (1 - true) * wall + rng.normal(0, 2, true.shape)
    top, dtype = (255, np.uint8) if bits == 8 else (1023, np.uint16)
    plane = np.clip(np.rint(luma * top / 255), 0, top).astype(dtype)
    grey = np.full((-(-height // 2), -(-width // 2)), (top + 1) // 2, dtype)
    return true, (plane, grey, grey.copy())


def small_of(true: np.ndarray) -> np.ndarray:
    """What a network would give: reduced, and a little soft."""
    small = cv2.resize(true, SMALL[::-1], interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), 0.8).astype(np.float32)


def bilinear(matte: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(cv2.convertScaleAbs(matte, alpha=255), (width, height), interpolation=cv2.INTER_LINEAR)


def error(alpha: np.ndarray, true: np.ndarray) -> float:
    return float(np.abs(alpha / np.float32(255) - true).mean())


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (641, 481), (1001, 563)], ids=str)
def test_nearer_the_truth_than_bilinear(size: tuple[int, int], bits: int) -> None:
    true, planes = hairy(*size, bits)
    small = small_of(true)
    alpha = Upsampler()(small, planes)
    assert alpha.dtype == np.uint8 and alpha.shape == true.shape
    assert error(alpha, true) < 0.75 * error(bilinear(small, *size), true)


def test_cells_left_out_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that surely stay empty or full are not worked on, and it shows nowhere but in single codes."""
    true, planes = hairy()
    small, counts, mattes = small_of(true), [], []
    for left_out in (True, False):
        if not left_out:
            monkeypatch.setattr(upsampling, "_sure", lambda luma, *rest: np.zeros(luma.shape, bool))
        with monkeypatch.context() as here:
            here.setattr(upsampling, "follow", lambda *a: (counts.append(np.count_nonzero(a[1])), follow(*a)))
            mattes.append(Upsampler()(small, planes))
    assert 0.2 * counts[1] < counts[0] < 0.85 * counts[1]
    apart = cv2.absdiff(*mattes)
    assert apart.max() <= 8 and np.count_nonzero(apart) < 2e-5 * apart.size


@pytest.mark.parametrize("size", [(1280, 720), (1921, 1079), (853, 480), (333, 251)], ids=str)
def test_outside_the_band_bilinear_bit_for_bit(size: tuple[int, int]) -> None:
    true, planes = hairy(*size)
    small = small_of(true)
    alpha, plain = Upsampler()(small, planes), bilinear(small, *size)
    distance = round(max(size) / 40)
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    flat = cv2.dilate(plain, window).astype(int) - cv2.erode(plain, window) < 8
    assert 0.3 < flat.mean() < 0.95
    np.testing.assert_array_equal(alpha[flat], plain[flat])
    assert (alpha != plain).mean() > 0.002, "inside the band it is not"


def test_no_texture_of_a_picture_without_an_edge() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (720, 1280), np.uint8)
    planes = (noise, noise[::2, ::2].copy(), noise[::2, ::2].copy())
    for level in (0.0, 0.3, 1.0):
        matte = np.full(SMALL, level, np.float32)
        np.testing.assert_array_equal(Upsampler()(matte, planes), bilinear(matte, 1280, 720))


def test_a_strong_edge_is_not_crossed() -> None:
    """A straight shoulder: full inside, none outside, within three pixels of where the picture has it."""
    true, planes = hairy(1920, 1080)
    alpha = Upsampler()(small_of(true), planes)
    edge = int(0.72 * 1080)
    columns = slice(int(0.28 * 1920), int(0.34 * 1920))
    assert alpha[edge + 4 : edge + 40, columns].min() > 240, "the shoulder is not eaten"
    assert alpha[edge - 40 : edge - 4, columns].max() < 15, "nothing of the wall"


def test_ten_bits_as_eight() -> None:
    true, planes = hairy()
    wide = tuple(p.astype(np.uint16) * 4 for p in planes)
    small = small_of(true)
    a, b = Upsampler()(small, planes).astype(int), Upsampler()(small, wide)
    assert np.abs(a - b).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (15, 40), (16, 16), (31, 17), (640, 17)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    w, h = size
    luma = np.random.default_rng(2).integers(0, 256, (h, w), np.uint8)
    small = small_of(np.tile(np.linspace(0, 1, w, dtype=np.float32), (h, 1)))
    planes = (luma, luma[::2, ::2].copy(), luma[::2, ::2].copy())
    assert Upsampler(edge=Edge(3, 4, 0.2))(small, planes).shape == (h, w)


def test_strided_planes_and_reuse() -> None:
    true, planes = hairy()
    wide = np.zeros((720, 1312), np.uint8)
    wide[:, :1280] = planes[0]
    up, small = Upsampler(), small_of(true)
    first = up(small, planes)
    kept = first.copy()
    np.testing.assert_array_equal(up(small, (wide[:, :1280], *planes[1:])), kept)
    up(1 - small, planes)
    np.testing.assert_array_equal(first, kept, "what was given out stays")


def disc(radius: float, soft: float = 2.0) -> np.ndarray:
    y, x = np.mgrid[0:1080, 0:1920]
    return np.clip((radius - np.hypot(x - 960, y - 540)) / soft * 255 + 127.5, 0, 255).astype(np.uint8)


def radius_of(alpha: np.ndarray) -> float:
    """Of the half-way outline of a disc, by its area."""
    return float(np.sqrt((alpha >= 128).sum() / np.pi))


@pytest.mark.parametrize("shift", [-12, -5, -1, 1, 5, 12])
def test_shift_grows_and_shrinks(shift: float) -> None:
    assert radius_of(shaped(disc(200), Edge(shift=shift))) == pytest.approx(200 + shift, abs=1.2)


def test_shift_scales_with_the_picture() -> None:
    small = cv2.resize(disc(200), (960, 540), interpolation=cv2.INTER_AREA)
    assert radius_of(shaped(small, Edge(shift=8))) == pytest.approx(104, abs=0.8)


@pytest.mark.parametrize("height", [480, 720, 1080, 2160])
@pytest.mark.parametrize("feather", [3, 6, 11, 20, 60])
def test_feather_is_as_wide_as_it_says(feather: float, height: int) -> None:
    sharp = cv2.resize(disc(300, 1), (height * 16 // 9, height), interpolation=cv2.INTER_AREA)
    middle = shaped(sharp, Edge(feather=feather))[height // 2, height * 8 // 9 :].astype(int)
    assert int(((middle > 5) & (middle < 250)).sum()) == pytest.approx(feather * height / 1080, rel=0.12, abs=1.4)


@pytest.mark.parametrize("feather", [4, 11, 30])
def test_feather_softens_and_keeps_the_outline(feather: float) -> None:
    alpha = shaped(disc(200), Edge(feather=feather))
    assert radius_of(alpha) == pytest.approx(200, abs=1)
    middle = alpha[540, 960:].astype(int)
    width = int(((middle > 5) & (middle < 250)).sum())
    assert 0.6 * feather < width < 1.6 * feather + 4
    assert alpha[540, 960] == 255 and alpha[0, 0] == 0


def test_hardness_steepens_around_half_way() -> None:
    soft = disc(200, 30)
    widths = []
    for hardness in (0, 0.5, 0.9, 1):
        alpha = shaped(soft, Edge(hardness=hardness))
        assert radius_of(alpha) == pytest.approx(200, abs=1)
        widths.append(int(((alpha > 0) & (alpha < 255)).sum()))
    assert widths[0] > 1.8 * widths[1] > 5 * widths[2] and widths[3] == 0


def test_the_three_combine() -> None:
    """Grown by 10, softened over 20, made twice as steep: each does what it does alone."""
    alpha = shaped(disc(200), Edge(10, 20, 0.5))
    assert radius_of(alpha) == pytest.approx(210, abs=1.2)
    middle = alpha[540, 960:].astype(int)
    assert 4 < int(((middle > 5) & (middle < 250)).sum()) < 12


def test_edges_in_tiles_as_in_one_piece() -> None:
    """Nothing of the tiles shows: the same on a picture moved by a few pixels."""
    alpha = disc(200)
    moved = np.roll(alpha, (7, 13), (0, 1))
    one = np.roll(shaped(alpha, Edge(4, 9, 0.3)), (7, 13), (0, 1))
    np.testing.assert_array_equal(one, shaped(moved, Edge(4, 9, 0.3)))


@pytest.mark.parametrize(
    "bad", [{"shift": 21}, {"feather": -1}, {"feather": 61}, {"hardness": 1.1}, {"shift": float("nan")}]
)
def test_refuses_other_edges(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shift"):
        Edge(**bad)


def test_refuses_other_mattes() -> None:
    _, planes = hairy(320, 180)
    for bad in (np.zeros(SMALL), np.zeros(SMALL, np.uint8), np.zeros((1, *SMALL), np.float32)):
        with pytest.raises(ValueError, match="float32"):
            Upsampler()(bad, planes)


@pytest.mark.parametrize("size", [(24, 12), (25, 13), (7, 5)], ids=str)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_grid(size: tuple[int, int], scale: int) -> None:
    """Means are those of whole cells; enlarging in tiles is enlarging the whole."""
    w, h = size
    grid = Grid(w, h, scale)
    plane = np.random.default_rng(3).integers(0, 256, (h, w)).astype(np.float32)
    means = grid.means(plane)
    rows, columns = grid.shape
    for y in range(rows):
        for x in range(columns):
            cell = plane[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale]
            assert means[y, x] == pytest.approx(cell.mean(), abs=1e-3)
    whole = cv2.resize(means, (columns * scale, rows * scale), interpolation=cv2.INTER_LINEAR)[:h, :w]
    done = np.full_like(plane, np.nan)
    for tile in grid.tiles(np.ones(grid.shape, np.uint8)):
        assert np.isnan(done[tile.pixels()]).all()
        done[tile.pixels()] = tile.patch().enlarged(means)
    np.testing.assert_allclose(done, whole, atol=1e-3)


def noisy(planes: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """With the chroma noise of a codec, which changes whole blocks."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, planes[1].shape), (0, 0), 3)
    u = np.clip(planes[1] + 1.5 * noise / noise.std(), 0, 255).astype(np.uint8)
    return planes[0], u, planes[2]


def coloured(true: np.ndarray, planes: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The same brightness everywhere, and a person of another colour."""
    u = np.rint(120 + 40 * cv2.resize(true, planes[1].shape[::-1], interpolation=cv2.INTER_AREA)).astype(np.uint8)
    return np.full_like(planes[0], 120), u, planes[2]


def test_colour_alone_guides_too() -> None:
    true, planes = hairy()
    small = small_of(true)
    alpha = Upsampler()(small, coloured(true, planes))
    assert error(alpha, true) < 0.85 * error(bilinear(small, 1280, 720), true)


def test_noise_of_a_still_picture_does_not_flicker() -> None:
    """Told the times, the fit averages the noise out; a picture of its own, and one after a reset, has no past."""
    true, planes = hairy()
    planes = coloured(true, planes)
    small, up, other = small_of(true), Upsampler(), Upsampler()
    change, alone, before = [], [], None
    for k in range(12):
        rng = np.random.default_rng(k)
        pair = up(small, noisy(planes, rng), k / 30), other(small, noisy(planes, np.random.default_rng(k)))
        if before is not None and k > 5:
            change.append(np.abs(pair[0].astype(int) - before[0]).mean())
            alone.append(np.abs(pair[1].astype(int) - before[1]).mean())
        before = pair
    assert np.mean(change) < 0.9 * np.mean(alone)
    up.reset()
    picture = noisy(planes, np.random.default_rng(99))
    np.testing.assert_array_equal(up(small, picture, 0.5), other(small, picture))


@pytest.mark.parametrize("why", ["gap", "backwards", "size"])
def test_the_past_of_the_fit_is_forgotten(why: str) -> None:
    true, planes = hairy(640, 360)
    planes = coloured(true, planes)
    up, rng = Upsampler(), np.random.default_rng(0)
    for k in range(5):
        up(small_of(true), noisy(planes, rng), 1 + k / 30)
    if why == "size":
        true, planes = hairy(426, 240)
        planes = coloured(true, planes)
    picture = noisy(planes, rng)
    seconds = {"gap": 2.0, "backwards": 0.9}.get(why, 1 + 5 / 30)
    np.testing.assert_array_equal(up(small_of(true), picture, seconds), Upsampler()(small_of(true), picture))


def test_a_moving_edge_leaves_nothing_behind() -> None:
    true, planes = hairy()
    up = Upsampler()
    for k in range(8):
        moved = tuple(np.roll(p, 24 * k // (1 if p is planes[0] else 2), axis=1) for p in planes)
        small = small_of(np.roll(true, 24 * k, axis=1))
        kept, fresh = up(small, moved, k / 30), Upsampler()(small, moved)
        assert np.abs(kept.astype(int) - fresh).mean() < 0.15


def test_a_moving_edge_of_colour_alone_leaves_nothing_behind() -> None:
    """As light as the wall: told the times, the fit is no worse than that of pictures of their own."""
    true, planes = hairy(640, 360)
    upsampler, apart = Upsampler(), []
    for k in range(10):
        moved = np.roll(true, 6 * k, 1)
        luma, *chroma = coloured(moved, planes)
        seen = (np.full_like(luma, 120), *chroma)
        small = small_of(moved)
        apart.append(error(upsampler(small, seen, k / 30), moved) - error(Upsampler()(small, seen), moved))
    assert max(apart) < 0.02 * error(Upsampler()(small, seen), moved)


def test_edge_cells() -> None:
    """Every pixel that is soft, and every one whose left neighbour differs from it, lies in a cell that counts."""
    rng = np.random.default_rng(5)
    for size in ((320, 180), (333, 251)):
        alpha = np.zeros(size[::-1], np.uint8)
        cv2.circle(alpha, (150, 90), 60, 255, -1)
        alpha[rng.integers(0, size[1], 9), rng.integers(0, size[0], 9)] = rng.integers(1, 255, 9)
        grid = Grid(*size, 4)
        edge, full = grid.edge(alpha)
        counts = cv2.resize(edge, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)[: size[1], : size[0]] > 0
        assert counts[(alpha > 0) & (alpha < 255)].all()
        assert counts[:, 1:][alpha[:, 1:] != alpha[:, :-1]].all()
        assert counts.mean() < 0.25
        opaque = cv2.resize(full, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)[: size[1], : size[0]] > 0
        np.testing.assert_array_equal(alpha[~counts], np.where(opaque, 255, 0)[~counts])
        assert not (opaque & counts).any() and opaque.any()
    for level in (0, 255):
        edge, full = Grid(320, 180, 4).edge(np.full((180, 320), level, np.uint8))
        assert not edge.any() and (full == level).all()


@pytest.mark.parametrize("level", [None, 0.0, 0.4, 1.0], ids=str)
@pytest.mark.parametrize("size", [(1280, 720), (853, 480), (333, 251)], ids=str)
def test_what_is_told_of_the_matte_and_the_picture_is_so(size: tuple[int, int], level: float | None) -> None:
    """Later steps rely on it instead of reading both again."""
    true, planes = hairy(*size)
    up = Upsampler()
    for k in range(3):
        matte = small_of(np.roll(true, 9 * k, axis=1)) if level is None else np.full(SMALL, level, np.float32)
        alpha = up(matte, tuple(np.roll(p, 9 * k, axis=1) for p in planes), k / 30)
    known = EDGES.of(alpha)
    assert known is not None
    edge, full = known.grid.edge(alpha)
    assert (known.edge[edge > 0] > 0).all(), "no cell of the edge is left out"
    assert (full[known.full > 0] == 255).all() and not (known.full[known.edge > 0]).any()
    assert (known.edge > 0).mean() <= (edge > 0).mean() + 0.01, "and few are that are none"
    assert np.abs(known.share - known.grid.means(alpha).astype(np.float32) / 255)[:-1, :-1].max() < 0.03
    again = Upsampler()
    again(matte, planes)
    told = MEANS.of(planes[0])
    assert told is not None
    for mean, plane, k in zip(told.means, planes, (1, 2, 2), strict=True):
        np.testing.assert_array_equal(mean, told.grid.means(plane) if k == 1 else told.grid.chroma_means(plane, k, k))


def test_the_least_changes_are_not_followed() -> None:
    """A soft edge that changes by a code keeps what it had; one that changes by more does not, nor what is sure."""
    true, planes = hairy(640, 360)
    small, up = small_of(true), Upsampler()
    first = up(small, planes, 0.0)
    other = np.where((small > 0.1) & (small < 0.9), small + np.float32(1 / 255), small)
    second, fresh = up(other, planes, 1 / 30), Upsampler()(other, planes)
    near = np.abs(fresh.astype(int) - first) <= LEAST
    changed = (second != first) & near
    assert ((fresh != first) & near).mean() > 0.005, "there was something to keep"
    assert changed.mean() < 0.2 * ((fresh != first) & near).mean()
    assert np.abs(second.astype(int) - fresh).max() <= LEAST
    sure = (fresh == 0) | (fresh == 255)
    np.testing.assert_array_equal(second[sure], fresh[sure])


def test_what_is_seen_while_nobody_is_there_counts() -> None:
    """Somebody leaves and comes back; by then the room has other colours, in the same luma: no fit to the old ones."""
    true, (luma, *_) = hairy(640, 360)
    wall, small, up = np.full_like(luma, 170), small_of(true), Upsampler()
    y, x = np.mgrid[0:180, 0:320]
    before, after = (np.where((x // 9 + y // step) % 2, 60, 200).astype(np.uint8) for step in (9, 4))
    up(small, (luma, before, before), 0.0)
    for k in range(1, 91):
        up(np.zeros_like(small), (wall, after, after), k / 30)
    seen = luma, after, after
    back, fresh = up(small, seen, 91 / 30), Upsampler()(small, seen)
    assert np.abs(back.astype(int) - fresh).max() <= LEAST


@pytest.mark.parametrize("size", [(2600, 16), (16, 2600), (31, 5000)], ids=str)
def test_a_grid_of_one_row_or_column(size: tuple[int, int]) -> None:
    width, height = size
    luma = np.random.default_rng(1).integers(0, 256, (height, width)).astype(np.uint8)
    half = luma[::2, ::2].copy()
    ramp = np.linspace(0, 1, 320, dtype=np.float32)
    matte = np.tile(ramp, (192, 1)) if width > height else np.tile(ramp, (192, 1)).T.copy()
    alpha = Upsampler()(matte, (luma, half, half))
    assert alpha.shape == luma.shape and alpha.min() == 0 and alpha.max() == 255
