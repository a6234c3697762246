"""benchmarks.metrics against small cases worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest

from benchmarks import metrics
from benchmarks.quality_video import behind_blur
from benchmarks.scenes import Picture
from rtbg.color import rgb_to_planes
from rtbg.frame import BT709, LIMITED, Color, Frame


def square(side: int = 40, low: int = 10, high: int = 30) -> np.ndarray:
    alpha = np.zeros((side, side), np.float32)
    alpha[low:high, low:high] = 1
    return alpha


def test_mad_and_mse_are_means_times_a_thousand() -> None:
    true = np.zeros((2, 5), np.float32)
    pred = true.copy()
    pred[0, 0], pred[1, 1] = 0.5, 1.0
    assert metrics.mad(pred, true) == pytest.approx(150)
    assert metrics.mse(pred, true) == pytest.approx(125)
    assert metrics.mad(true, true) == metrics.mse(true, true) == 0


def test_dtssd_looks_at_changes_only() -> None:
    rng = np.random.default_rng(0)
    before, now, offset = (rng.random((6, 7), np.float32) for _ in range(3))
    assert metrics.dtssd(now + offset, before + offset, now, before) == pytest.approx(0, abs=1e-4)
    still = np.zeros((2, 2), np.float32)
    jumped = still.copy()
    jumped[0, 0] = 0.6
    # sqrt(0.36 / 4) = 0.3
    assert metrics.dtssd(jumped, still, still, still) == pytest.approx(30)


def test_grad_of_a_step_at_another_place() -> None:
    """The gradients of two steps far apart do not meet: the error is the sum of both squared gradients."""
    true, pred = (np.zeros((1, 101), np.float32) for _ in range(2))
    true[:, 30:], pred[:, 70:] = 1, 1
    kernel = metrics._derivative(1.4)
    assert (kernel**2).sum() == pytest.approx(1)
    assert kernel.shape == (9, 9), "cut where it falls below 0.01"
    # One row, borders repeated: the filter is the sum of its rows; a step gives the running sum of it.
    response = np.cumsum(kernel.sum(axis=0))
    assert metrics.grad(pred, true) == pytest.approx(2 * (response**2).sum() / 1000, rel=1e-4)
    assert metrics.grad(true, true) == 0


def test_conn_charges_what_is_cut_off() -> None:
    """A detached blob of alpha 1 over a truth of 0 hangs together with nothing: each of its pixels counts 1."""
    true = square()
    pred = true.copy()
    pred[2:5, 2:4] = 1
    assert metrics.conn(pred, true) == pytest.approx(6 / 1000)
    attached = true.copy()
    attached[10:14, 10:30] = 0.6  # joined to the rest up to level 0.5
    assert metrics.conn(attached, true) == pytest.approx(80 * (0.4 - 0.0) / 1000, rel=0.3)
    assert metrics.conn(true, true) == 0


def test_boundary_f() -> None:
    true = square()
    assert metrics.boundary_f(true, true) == 1
    empty = np.zeros_like(true)
    assert metrics.boundary_f(empty, true) == 0
    assert metrics.boundary_f(empty, empty) == 1
    moved = np.roll(true, 1, axis=1)
    assert metrics.boundary_f(moved, true) == 1, "one pixel is within 0.008 of the diagonal, rounded up"
    far = np.roll(true, 8, axis=1)
    # Left and right sides are missed; of the upper and lower ones, 20 long, 13 of 20 pixels are near enough.
    assert 0.2 < metrics.boundary_f(far, true) < 0.6
    left = np.zeros(true.shape, bool)
    left[:, :5] = True
    assert metrics.boundary_f(far, true, where=left) == 1, "no outline of either in there"


def test_flicker_and_trail() -> None:
    a = np.zeros((4, 5), np.float32)
    b = a.copy()
    b[0, 0] = 0.2
    assert metrics.flicker(b, a) == pytest.approx(10)
    earlier, now = np.zeros((1, 10), np.float32), np.zeros((1, 10), np.float32)
    earlier[0, 0:4], now[0, 2:6] = 1, 1  # columns 0, 1 were left, 4, 5 were entered
    assert metrics.trail(now, now, earlier) == 0
    assert metrics.trail(earlier, now, earlier) == pytest.approx(1000)
    half = (earlier + now) / 2
    assert metrics.trail(half, now, earlier) == pytest.approx(500)
    assert math.isnan(metrics.trail(now, now, now))


def test_halo_is_the_colour_error_where_asked() -> None:
    truth = np.zeros((4, 4, 3), np.uint8)
    made = truth.copy()
    made[0, 0] = (30, 0, 0)
    made[3, 3] = 200
    where = np.zeros((4, 4), bool)
    where[0, :2] = True
    assert metrics.halo(made, truth, where) == pytest.approx(5)
    assert math.isnan(metrics.halo(made, truth, np.zeros((4, 4), bool)))


def test_soft_edge() -> None:
    alpha = np.array([[0, 0.01, 0.5, 0.97, 1]], np.float32)
    np.testing.assert_array_equal(metrics.soft_edge(alpha), [[False, False, True, True, False]])


@pytest.mark.parametrize("measure", [metrics.mad, metrics.mse, metrics.grad, metrics.conn, metrics.boundary_f])
def test_arrays_that_do_not_fit(measure) -> None:
    with pytest.raises(ValueError, match="one shape"):
        measure(np.zeros((3, 4), np.float32), np.zeros((4, 3), np.float32))


def test_a_blurred_matte_is_worse_than_the_truth_in_every_figure() -> None:
    true = square()
    pred = cv2.GaussianBlur(true, (9, 9), 2)
    assert all(m(pred, true) > 0 for m in (metrics.mad, metrics.mse, metrics.grad, metrics.conn))


def test_around_is_the_ring_outside() -> None:
    ring = metrics.around(square(), 4)
    assert ring.sum() == 28 * 28 - 20 * 20
    assert not ring[10:30, 10:30].any() and ring[6, 6] and not ring[5, 20]


def test_what_is_behind_a_blur_is_told_from_what_bleeds_into_it() -> None:
    """A bright person before a dark wall: the plain blur is brighter around them, ours is not."""
    room = np.full((360, 640, 3), 60, np.uint8)
    alpha = np.zeros((360, 640), np.float32)
    alpha[120:, 220:420] = 1
    rgb = np.where(alpha[..., None] > 0, 230, room).astype(np.uint8)
    color = Color(BT709, LIMITED)
    frame = Frame(rgb_to_planes(rgb, color, height=360, bits=8, chroma=(2, 2)), 0, Fraction(1, 30), color)
    picture = Picture(frame, alpha, rgb, "still", room=room)
    plain, ours = behind_blur(picture, (alpha * 255).astype(np.uint8))
    assert plain[0] > 5 and plain[1] > 20, "bleed and rim of a blur of everything"
    assert max(ours) < 2
