"""rtbg.composite against the exact blend, in every format."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rtbg.color import planes_to_rgb
from rtbg.composite import Compositor, composite
from rtbg.errors import UsageError
from rtbg.foreground import Foreground
from rtbg.frame import FULL, LIMITED, Color, Frame

FORMATS = [(bits, chroma) for bits in (8, 10) for chroma in ((2, 2), (2, 1), (1, 1), (1, 2))]
SIZES = [(48, 32), (47, 33), (1, 1), (2, 3), (5, 2)]


def planes(seed: int, w: int, h: int, bits: int, chroma: tuple[int, int]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    small = (-(-h // chroma[1]), -(-w // chroma[0]))
    dtype = np.uint8 if bits == 8 else np.uint16
    return tuple(rng.integers(0, 1 << bits, shape, dtype) for shape in ((h, w), small, small))


def frame_of(seed: int, w: int, h: int, bits: int, chroma: tuple[int, int], color: Color | None = None) -> Frame:
    return Frame(planes(seed, w, h, bits, chroma), 7, Fraction(1, 30), color or Color(1, LIMITED), 1.5)


def exact_alpha(alpha: np.ndarray, chroma: tuple[int, int]) -> np.ndarray:
    """Alpha of the chroma planes by the definition, 0..1."""
    out = alpha / 255
    if chroma[1] == 2:
        out = np.vstack((out, out[-1:])) if len(out) % 2 else out
        out = (out[0::2] + out[1::2]) / 2
    if chroma[0] == 2:
        wide = np.pad(out, ((0, 0), (1, 1)), mode="edge")
        out = ((wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 4)[:, ::2]
    return out


def exact(frame: Frame, alpha: np.ndarray, background: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    weights = [alpha / 255, *[exact_alpha(alpha, frame.chroma)] * 2]
    return [f * a + b * (1 - a) for f, b, a in zip(frame.planes, background, weights, strict=True)]


def mattes(w: int, h: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:h, 0:w]
    disc = np.clip(300 - 30 * np.hypot(x - 0.45 * w, y - 0.6 * h), 0, 255).astype(np.uint8)
    point = np.zeros((h, w), np.uint8)
    point[h // 2, w // 2] = 255
    holes = np.where(rng.random((h, w)) < 0.1, 255, 0).astype(np.uint8)
    return {"random": rng.integers(0, 256, (h, w), np.uint8), "disc": disc, "point": point, "holes": holes}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_exactness(bits: int, chroma: tuple[int, int], size: tuple[int, int]) -> None:
    frame, behind = frame_of(1, *size, bits, chroma), planes(2, *size, bits, chroma)
    kept = [p.copy() for p in (*frame.planes, *behind)]
    blend = Compositor()
    for name, alpha in mattes(*size).items():
        done = blend(frame, alpha, behind)
        assert (done.pts, done.time_base, done.color, done.captured) == (7, Fraction(1, 30), frame.color, 1.5)
        for out, want, plane in zip(done.planes, exact(frame, alpha, behind), frame.planes, strict=True):
            assert out.dtype == plane.dtype and out.shape == plane.shape
            assert np.abs(out.astype(int) - np.rint(want)).max() <= 1, name
        luma, front = done.planes[0], frame.planes[0]
        assert np.array_equal(luma[alpha == 255], front[alpha == 255])
        assert np.array_equal(luma[alpha == 0], behind[0][alpha == 0])
    assert all(np.array_equal(a, b) for a, b in zip(kept, (*frame.planes, *behind), strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_extremes(bits: int, chroma: tuple[int, int], size: tuple[int, int]) -> None:
    frame, behind = frame_of(1, *size, bits, chroma), planes(2, *size, bits, chroma)
    w, h = size
    for value, want in ((0, behind), (255, frame.planes)):
        done = composite(frame, np.full((h, w), value, np.uint8), behind)
        for out, plane, given in zip(done.planes, want, (*frame.planes, *behind), strict=False):
            assert np.array_equal(out, plane)
            assert not np.shares_memory(out, given)


@pytest.mark.parametrize("x", range(8))
def test_edges_of_the_box(x: int) -> None:
    """A matte that touches or nearly touches the frame's border: chroma's neighbours are the right ones."""
    for size in ((8, 4), (7, 5)):
        frame, behind = frame_of(1, *size, 8, (2, 2)), planes(2, *size, 8, (2, 2))
        for wide in (1, 2, 3):
            alpha = np.zeros((size[1], size[0]), np.uint8)
            alpha[1:3, x : x + wide] = 255
            for out, want in zip(composite(frame, alpha, behind).planes, exact(frame, alpha, behind), strict=True):
                assert np.abs(out - np.rint(want)).max() <= 1


def test_same_picture_in_front_and_behind_stays() -> None:
    """Nothing shows at the edge when both pictures are equal: both weights add up (in the chroma of 10 bits two
    halves may be rounded the same way)."""
    for bits, chroma in FORMATS:
        frame = frame_of(1, 64, 48, bits, chroma)
        alpha = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
        for out, plane in zip(composite(frame, alpha, frame.planes).planes, frame.planes, strict=True):
            assert np.abs(out.astype(int) - plane).max() <= (0 if bits == 8 else 1)


def test_chroma_alpha_is_left_sited() -> None:
    """One opaque column counts a half for the chroma it coincides with, a quarter for its neighbours."""
    grey = np.full((4, 16), 100, np.uint8), *(np.full((2, 8), 0, np.uint8) for _ in "uv")
    behind = np.full((4, 16), 100, np.uint8), *(np.full((2, 8), 200, np.uint8) for _ in "uv")
    frame = Frame(grey, 0, Fraction(1, 30))
    for column, want in ((6, {3: 100}), (7, {3: 150, 4: 150})):
        alpha = np.zeros((4, 16), np.uint8)
        alpha[:, column] = 255
        u = composite(frame, alpha, behind).planes[1]
        assert u[0].tolist() == [want.get(i, 200) for i in range(8)]


def test_strided_planes() -> None:
    frame, behind = frame_of(1, 40, 30, 8, (2, 2)), planes(2, 40, 30, 8, (2, 2))
    alpha = mattes(40, 30)["random"]
    want = composite(frame, alpha, behind).planes

    def strided(p: np.ndarray) -> np.ndarray:
        wide = np.zeros((p.shape[0], p.shape[1] + 5), p.dtype)
        wide[:, : p.shape[1]] = p
        return wide[:, : p.shape[1]]

    views = frame.with_planes(tuple(strided(p) for p in frame.planes))
    done = composite(views, strided(alpha), tuple(strided(p) for p in behind))
    assert all(np.array_equal(a, b) for a, b in zip(done.planes, want, strict=True))


def test_outputs_are_fresh() -> None:
    """Frames travel on to another thread: the next one must not write into them."""
    blend = Compositor()
    alpha = mattes(40, 30)["disc"]
    first = blend(frame_of(1, 40, 30, 8, (2, 2)), alpha, planes(2, 40, 30, 8, (2, 2)))
    kept = [p.copy() for p in first.planes]
    blend(frame_of(3, 40, 30, 8, (2, 2)), 255 - alpha, planes(4, 40, 30, 8, (2, 2)))
    assert all(np.array_equal(a, b) for a, b in zip(first.planes, kept, strict=True))


def test_sizes_and_formats_may_change() -> None:
    blend = Compositor()
    for size, bits, chroma in (((40, 30), 8, (2, 2)), ((64, 50), 10, (2, 1)), ((20, 10), 8, (1, 1))):
        frame, behind = frame_of(1, *size, bits, chroma), planes(2, *size, bits, chroma)
        alpha = mattes(*size)["random"]
        for out, want in zip(blend(frame, alpha, behind).planes, exact(frame, alpha, behind), strict=True):
            assert np.abs(out - np.rint(want)).max() <= 1


@pytest.mark.parametrize("color", [Color(1, LIMITED), Color(1, FULL), Color()], ids=["limited", "full", "untagged"])
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_matte(bits: int, chroma: tuple[int, int], color: Color) -> None:
    frame = frame_of(1, 256, 5, bits, chroma, color)
    alpha = np.tile(np.arange(256, dtype=np.uint8), (5, 1))
    done = composite(frame, alpha, None, show="matte")
    top = (1 << bits) - 1
    low, high = (0, top) if color.range == FULL else (16 << bits - 8, 235 << bits - 8)
    want = low + (high - low) * np.arange(256) / 255
    assert np.abs(done.planes[0] - want).max() <= 0.5
    assert {int(v) for p in done.planes[1:] for v in p.flat} == {128 << bits - 8}
    assert [(p.shape, p.dtype) for p in done.planes] == [(p.shape, p.dtype) for p in frame.planes]
    assert np.abs(planes_to_rgb(done.planes, color)[0, :, 1].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("show", ["composite", "foreground"])
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_transparent(bits: int, chroma: tuple[int, int], show: str) -> None:
    frame = frame_of(1, 33, 21, bits, chroma)
    alpha = mattes(33, 21)["random"].copy()
    alpha[:, :16] = 0
    done = composite(frame, alpha, None, show=show)
    # Nothing of the room where nobody is, everything of the person where somebody may be.
    black = (0 if frame.color.range == FULL else 16) << bits - 8
    assert np.array_equal(done.planes[0], np.where(alpha > 0, frame.planes[0], black))
    sx, sy = chroma
    for plane, own in zip(done.planes[1:3], frame.planes[1:3], strict=True):
        assert np.all(plane[:, : 14 // sx] == 128 << bits - 8)
        seen = np.repeat(np.repeat(plane == own, sy, 0), sx, 1)[:21, :33]
        assert seen[alpha > 0].all()
    assert done.planes[3].dtype == frame.planes[0].dtype
    assert np.array_equal(done.planes[3], np.rint(alpha * (((1 << bits) - 1) / 255)).astype(int))
    assert not np.shares_memory(done.planes[3], alpha)


@pytest.mark.parametrize("color", [Color(1, LIMITED), Color(1, FULL)], ids=["limited", "full"])
@pytest.mark.parametrize("bits", [8, 10])
def test_foreground_is_over_black(bits: int, color: Color) -> None:
    frame, behind = frame_of(1, 33, 21, bits, (2, 2), color), planes(2, 33, 21, bits, (2, 2))
    done = composite(frame, np.zeros((21, 33), np.uint8), behind, show="foreground")
    step = 1 << bits - 8
    assert [{int(v) for v in p.flat} for p in done.planes] == [
        {0 if color.range == FULL else 16 * step},
        {128 * step},
        {128 * step},
    ]
    whole = composite(frame, np.full((21, 33), 255, np.uint8), behind, show="foreground")
    assert all(np.array_equal(a, b) for a, b in zip(whole.planes, frame.planes, strict=True))


def test_wrong_use() -> None:
    frame, behind = frame_of(1, 32, 20, 8, (2, 2)), planes(2, 32, 20, 8, (2, 2))
    alpha = np.zeros((20, 32), np.uint8)
    with pytest.raises(UsageError, match="composite, matte or foreground"):
        composite(frame, alpha, behind, show="mask")
    for wrong in (alpha[1:], alpha.astype(np.float32), alpha[:, :, None]):
        with pytest.raises(ValueError, match="uint8"):
            composite(frame, wrong, behind)
    with pytest.raises(ValueError, match="background"):
        composite(frame, alpha, planes(2, 32, 22, 8, (2, 2)))
    with pytest.raises(ValueError, match="background"):
        composite(frame, alpha, planes(2, 32, 20, 10, (2, 2)))


def disc(w: int, h: int) -> np.ndarray:
    """A soft-edged matte in the middle, uint8 (h, w)."""
    y, x = np.mgrid[0:h, 0:w]
    return np.clip(127 + 9 * (h / 3 - np.hypot(x - w / 2, y - h / 2)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(1280, 720), (853, 479)], ids=str)
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_exactness_where_most_is_copied(bits: int, chroma: tuple[int, int], size: tuple[int, int]) -> None:
    """A person, single pixels and hard edges, in pictures that are only worked on around edges."""
    frame, behind = frame_of(1, *size, bits, chroma), planes(2, *size, bits, chroma)
    w, h = size
    alpha = disc(w, h)
    alpha[h // 2 :, w // 2 :] = 255
    alpha[5, 7], alpha[h // 2, w // 2], alpha[h - 1, 3], alpha[10:30, 40:77] = 3, 252, 1, 255
    done = composite(frame, alpha, behind)
    for out, want in zip(done.planes, exact(frame, alpha, behind), strict=True):
        assert np.abs(out.astype(int) - np.rint(want)).max() <= 1
    for flat, one in ((0, behind), (255, frame.planes)):
        for a, b in zip(composite(frame, np.full_like(alpha, flat), behind).planes, one, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [(1280, 720), (853, 479), (47, 33)], ids=str)
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_with_the_persons_colours_as_in_two_steps(bits: int, chroma: tuple[int, int], size: tuple[int, int]) -> None:
    frame, behind = frame_of(1, *size, bits, chroma), planes(2, *size, bits, chroma)
    w, h = size
    alpha = disc(w, h)
    blend = Compositor(foreground=Foreground())
    for matte in (alpha, 255 - alpha, np.zeros_like(alpha)):
        want = composite(frame.with_planes(Foreground()(frame.planes, matte)), matte, behind)
        for a, b in zip(blend(frame, matte, behind).planes, want.planes, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1  # in between those are rounded to codes


def test_a_background_without_all_planes_is_refused() -> None:
    frame, alpha = frame_of(1, 64, 50, 8, (2, 2)), disc(64, 50)
    for behind in (planes(2, 64, 50, 8, (2, 2))[:1], planes(2, 64, 50, 8, (2, 2))[:2]):
        with pytest.raises(ValueError, match="does not have the planes"):
            Compositor()(frame, alpha, behind)


def test_no_colour_of_the_room_beside_a_hard_edge() -> None:
    """Chroma looks at the column on its left: a sample in which hardly anyone is, may be half of the person there."""
    shape, half = (90, 320), (45, 160)
    y = np.full(shape, 100, np.uint8)
    alpha = np.zeros(shape, np.uint8)
    alpha[:, :159] = 255  # an odd number of columns: the last one is beside a sample of chroma
    for more in (0, 1):
        alpha[:, 160] = more
        u = np.full(half, 100, np.uint8)  # the room
        u[:, :80] = 200  # the person
        frame = Frame((y, u, u), 0, Fraction(1, 30))
        new = (y, np.full(half, 200, np.uint8), np.full(half, 200, np.uint8))
        for plane in Compositor(foreground=Foreground())(frame, alpha, new).planes[1:]:
            assert plane.min() >= 199
