"""rtbg.foreground: at soft edges the person's own colour, everywhere else the picture, bit for bit."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from rtbg.color import subsample
from rtbg.composite import Compositor, composite
from rtbg.foreground import Foreground, reshaped
from rtbg.frame import LIMITED, Color, Frame
from rtbg.upsampling import Edge, shaped

PERSON, ROOM = (60, 110, 160), (200, 150, 90)
FORMATS = [(bits, chroma) for bits in (8, 10) for chroma in ((2, 2), (2, 1), (1, 1), (1, 2))]
SIZES = [(640, 360), (641, 359), (1280, 720)]


def soft_disc(width: int, height: int, soft: float = 14) -> np.ndarray:
    """uint8 alpha: a disc with an edge that is `soft` pixels wide."""
    y, x = np.mgrid[0:height, 0:width]
    distance = 0.3 * height - np.hypot(x - 0.5 * width, y - 0.5 * height)
    return np.clip(distance / soft * 255 + 127.5, 0, 255).astype(np.uint8)


def mixed(alpha: np.ndarray, bits: int, chroma: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Planes of a person of one colour, mixed by alpha with a room of one colour."""
    step, dtype = (1, np.uint8) if bits == 8 else (4, np.uint16)
    weights = (alpha.astype(np.float32) / 255, *[subsample(alpha.astype(np.float32), chroma) / 255] * 2)
    return tuple(
        np.rint((w * f + (1 - w) * b) * step).astype(dtype) for w, f, b in zip(weights, PERSON, ROOM, strict=True)
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_one_colour_is_recovered(bits: int, chroma: tuple[int, int], size: tuple[int, int]) -> None:
    alpha = soft_disc(*size)
    planes = mixed(alpha, bits, chroma)
    done = Foreground()(planes, alpha)
    step = 1 if bits == 8 else 4
    small = subsample(alpha, chroma)
    for plane, before, weight, code in zip(done, planes, (alpha, small, small), PERSON, strict=True):
        assert plane.dtype == before.dtype and plane.shape == before.shape
        soft = (weight > 12) & (weight < 255)
        off = np.abs(plane[soft].astype(float) / step - code)
        assert np.abs(before[soft].astype(float) / step - code).mean() > 15, "there was something to do"
        assert off.mean() < 3 and np.percentile(off, 99) < 9


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_nothing_else_is_touched(bits: int, chroma: tuple[int, int], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    alpha = soft_disc(*size)
    planes = tuple(rng.integers(0, 1 << bits, p.shape).astype(p.dtype) for p in mixed(alpha, bits, chroma))
    kept = [p.copy() for p in planes]
    done = Foreground()(planes, alpha)
    small = subsample(alpha, chroma)
    sure = [(w == 255) | (w == 0) for w in (alpha, small, small)]
    np.testing.assert_array_equal(done[0][sure[0]], planes[0][sure[0]])
    # Chroma: where all the luma samples that a sample stands for are sure.
    all_sure = cv2.erode(sure[0].astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.float32)
    far = subsample(all_sure, chroma) == 1
    for k in (1, 2):
        np.testing.assert_array_equal(done[k][far], planes[k][far])
    for a, b in zip(planes, kept, strict=True):
        np.testing.assert_array_equal(a, b, "the given planes are only read")


@pytest.mark.parametrize("behind", [(30, 128, 128), (220, 128, 128), (120, 60, 90)])
def test_no_halo(behind: tuple[int, int, int]) -> None:
    """Over another background, the composite is the person over it, at most a fifth of the plain one's error."""
    alpha = soft_disc(1280, 720)
    frame = Frame(mixed(alpha, 8, (2, 2)), 0, Fraction(1, 30), Color(1, LIMITED))
    background = tuple(np.full(p.shape, c, np.uint8) for p, c in zip(frame.planes, behind, strict=True))
    w = alpha[..., None].astype(np.float32)[..., 0] / 255
    soft = (alpha > 0) & (alpha < 255)
    ideal = w * PERSON[0] + (1 - w) * behind[0]
    plain = composite(frame, alpha, background).planes[0]
    better = composite(frame.with_planes(Foreground()(frame.planes, alpha)), alpha, background).planes[0]
    errors = [np.abs(p[soft] - ideal[soft]).mean() for p in (plain, better)]
    assert errors[1] < 0.2 * errors[0]


def test_detail_of_the_person_stays() -> None:
    """Stripes of the person go on through the soft edge where the matte is nearly full."""
    alpha = soft_disc(1280, 720, 30)
    planes = list(mixed(alpha, 8, (2, 2)))
    x = np.arange(1280)
    stripes = 25 * np.sign(np.sin(x / 2.5))[None]
    w = alpha / 255
    planes[0] = np.clip(np.rint(w * (100 + stripes) + (1 - w) * 200), 0, 255).astype(np.uint8)
    done = Foreground()(tuple(planes), alpha)[0]
    part = (alpha > 190) & (alpha < 250)
    truth = np.broadcast_to(100 + stripes, alpha.shape)
    assert np.abs(done[part] - truth[part]).mean() < 0.6 * np.abs(planes[0][part] - truth[part]).mean()


@pytest.mark.parametrize("bits", [8, 10])
def test_codes_stay_within_their_range(bits: int) -> None:
    """The whitest person before the blackest room and the other way round, with noise: nothing wraps or overflows."""
    rng, top = np.random.default_rng(1), (1 << bits) - 1
    alpha = soft_disc(320, 180)
    behind = tuple(np.full(p.shape, top, p.dtype) for p in mixed(alpha, bits, (2, 2)))
    for high in (0, top):
        planes = tuple(
            np.where(rng.random(p.shape) < 0.5, high, top - high).astype(p.dtype) for p in mixed(alpha, bits, (2, 2))
        )
        assert all(int(p.max()) <= top for p in Foreground(wrap=1.0)(planes, alpha, behind))


@pytest.mark.parametrize("level", [0, 255])
def test_nothing_to_do_gives_the_planes_back(level: int) -> None:
    alpha = np.full((90, 160), level, np.uint8)
    planes = mixed(alpha, 8, (2, 2))
    for a, b in zip(Foreground()(planes, alpha), planes, strict=True):
        assert a is b


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (17, 5)], ids=str)
@pytest.mark.parametrize("level", [1, 127, 254])
def test_tiny_pictures_and_all_soft(size: tuple[int, int], level: int) -> None:
    """Nothing sure anywhere: no division by nothing, and no invented colours."""
    alpha = np.full(size[::-1], level, np.uint8)
    planes = mixed(alpha, 8, (2, 2))
    for plane, before in zip(Foreground()(planes, alpha), planes, strict=True):
        assert plane.shape == before.shape
        assert np.abs(plane.astype(int) - before).max() <= 3, "one colour in, one colour out"


def test_light_wrap_reaches_the_edge_only() -> None:
    alpha = soft_disc(1280, 720)
    planes = mixed(alpha, 8, (2, 2))
    bright = tuple(np.full(p.shape, c, np.uint8) for p, c in zip(planes, (235, 128, 128), strict=True))
    plain, wrapped = Foreground()(planes, alpha, bright), Foreground(wrap=0.6)(planes, alpha, bright)
    row = wrapped[0][360].astype(int) - plain[0][360]
    edge = 640 + round(0.3 * 720)
    assert row[edge - 3 : edge].min() > 15, "lighter at the edge"
    assert row[640] == 0, "not in the middle"
    assert (np.diff(row[640 : edge - 8]) >= -1).all(), "and falling off without a step"
    np.testing.assert_array_equal(Foreground(wrap=0.6)(planes, alpha)[0], plain[0], "no background, no wrap")


def test_refuses_what_does_not_fit() -> None:
    alpha = soft_disc(64, 36)
    planes = mixed(alpha, 8, (2, 2))
    with pytest.raises(ValueError, match="matte"):
        Foreground()(planes, alpha[:10])
    with pytest.raises(ValueError, match="matte"):
        Foreground()(planes, alpha.astype(np.float32))
    for wrap in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="wrap"):
            Foreground(wrap=wrap)


EDGES = [Edge(shift=2), Edge(shift=12), Edge(20, 60), Edge(feather=30), Edge(hardness=0.8), Edge(8, 12, 0.5)]


@pytest.mark.parametrize("edge", EDGES, ids=str)
@pytest.mark.parametrize(("bits", "chroma"), FORMATS)
def test_what_has_grown_has_the_persons_colours(bits: int, chroma: tuple[int, int], edge: Edge) -> None:
    """As if the camera had seen a person of that size: nothing of the room becomes opaque."""
    before = soft_disc(1280, 720)
    after = shaped(before, edge)
    planes = mixed(before, bits, chroma)
    done, want = reshaped(planes, before, after), mixed(after, bits, chroma)
    step = 1 if bits == 8 else 4
    more = after > before
    assert more.sum() > 500
    off = np.abs(done[0].astype(float) - want[0])[more] / step
    room = np.abs(planes[0].astype(float) - want[0])[more] / step
    assert off.mean() < 0.12 * room.mean() and np.percentile(off, 99) < 16
    opaque = (after == 255) & (before < 64)
    if opaque.sum() > 100:
        assert np.abs(done[0][opaque].astype(float) / step - PERSON[0]).mean() < 4
        assert np.abs(planes[0][opaque].astype(float) / step - PERSON[0]).mean() > 80, "which was the room"
    small = [subsample(a.astype(np.float32), chroma) for a in (before, after)]
    taken = small[1] > small[0] + 100
    for k in (1, 2):
        assert not taken.any() or np.abs(done[k].astype(float) - want[k])[taken].mean() < 5 * step


@pytest.mark.parametrize("soft", [3, 14])
@pytest.mark.parametrize("edge", [Edge(-2), Edge(-10), Edge(feather=30), Edge(-2, 4, 0.3), Edge(-6, 20)])
def test_what_has_shrunk_has_no_rim(edge: Edge, soft: float) -> None:
    """Pixels full of the person that the matte now calls mixed: their colours are the person's all the same."""
    before = soft_disc(1280, 720, soft)
    after = shaped(before, edge)
    behind = mixed(np.zeros_like(before), 8, (2, 2))
    behind[0][:] = 120
    frame = Frame(reshaped(mixed(before, 8, (2, 2)), before, after), 0, Fraction(1, 30), Color(1, LIMITED))
    made = Compositor(foreground=Foreground())(frame, after, behind).planes[0]
    share = after / 255
    mixed_now = (after > 0) & (after < 255)
    off = np.abs(made - (share * PERSON[0] + (1 - share) * 120))[mixed_now]
    assert mixed_now.sum() > 500 and off.mean() < 1.2 and off.max() < 6


def test_nothing_else_is_reshaped() -> None:
    rng = np.random.default_rng(2)
    before = soft_disc(1280, 720)
    after = shaped(before, Edge(shift=6))
    planes = tuple(rng.integers(0, 256, p.shape, np.uint8) for p in mixed(before, 8, (2, 2)))
    kept = [p.copy() for p in planes]
    done = reshaped(planes, before, after)
    np.testing.assert_array_equal(done[0][after == before], planes[0][after == before])
    assert (done[0] != planes[0]).any()
    for a, b in zip(planes, kept, strict=True):
        np.testing.assert_array_equal(a, b, "the given planes are only read")
    assert all(a is b for a, b in zip(reshaped(planes, before, before.copy()), planes, strict=True))
    with pytest.raises(ValueError, match="matte"):
        reshaped(planes, before, after[:10])


def test_a_cell_of_4k_with_one_new_pixel_shows_no_room() -> None:
    """The person reaches one pixel into a cell of 24 by 24 in which there was nothing of them."""
    before = np.zeros((2160, 3840), np.uint8)
    before[960:1200, 1200:1440] = 255
    after = before.copy()
    after[1000, 1440] = 255
    done = reshaped(mixed(before, 8, (2, 2)), before, after)[0]
    assert abs(int(done[1000, 1440]) - PERSON[0]) < 12


def test_a_gap_that_closes_is_filled_with_the_person() -> None:
    """Between two fingers: grown together, the gap must not show the room."""
    before = np.zeros((720, 1280), np.uint8)
    before[200:600, 500:600], before[200:600, 608:708] = 255, 255
    after = shaped(before, Edge(shift=10))
    gap = np.s_[250:550, 600:608]
    assert after[gap].min() == 255
    done = reshaped(mixed(before, 8, (2, 2)), before, after)[0]
    assert np.abs(done[gap].astype(int) - PERSON[0]).max() < 12
