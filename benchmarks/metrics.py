"""Figures of mattes and composites against a known truth.

MAD, MSE, Grad, Conn and dtSSD are those of Robust Video Matting (Lin et al. 2021, `evaluation/evaluate_lr.py`), with
its scales; the others are defined here. Used by `benchmarks.quality_video`, `quality` and `past`.

Mattes are float32 (H, W), 0 background to 1 person. Every function raises ValueError for arrays that do not fit.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

from rtbg.frame import Array


def mad(pred: Array, true: Array) -> float:
    """Mean absolute difference, times 1000."""
    _same(pred, true)
    return float(cv2.norm(pred, true, cv2.NORM_L1) / pred.size * 1e3)


def mse(pred: Array, true: Array) -> float:
    """Mean squared difference, times 1000."""
    _same(pred, true)
    return float(cv2.norm(pred, true, cv2.NORM_L2SQR) / pred.size * 1e3)


def grad(pred: Array, true: Array, sigma: float = 1.4) -> float:
    """Squared differences of the gradients' lengths, summed, over 1000 (Rhemann et al. 2009).

    Gradients are those of a Gaussian of `sigma`, each filter of unit L2 norm, after both mattes were stretched to 0..1.
    """
    _same(pred, true)
    difference = _gradient(_stretched(true), sigma) - _gradient(_stretched(pred), sigma)
    return float(np.square(difference, dtype=np.float64).sum() / 1e3)


def conn(pred: Array, true: Array, step: float = 0.1) -> float:
    """Connectivity error, summed, over 1000 (Rhemann et al. 2009): how far each pixel's alpha lies above the
    highest level at which it still hangs together with the largest region that both mattes share."""
    _same(pred, true)
    levels = np.arange(0, 1 + step, step)
    reached = np.full(true.shape, -1, np.float32)
    for below, level in pairwise(levels):
        both = ((true >= level) & (pred >= level)).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(both, connectivity=4)
        largest = int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) + 1 if count > 1 else -1
        outside = labels != largest
        reached[(reached == -1) & outside] = below
    reached[reached == -1] = 1
    far = [np.where(a - reached >= 0.15, a - reached, 0) for a in (true, pred)]
    return float(np.abs(far[0] - far[1]).sum(dtype=np.float64) / 1e3)


def dtssd(pred: Array, pred_before: Array, true: Array, true_before: Array) -> float:
    """Root of the mean squared difference of the changes from one picture to the next, times 100
    (Erofeev et al. 2015)."""
    _same(pred, true)
    _same(pred_before, true_before)
    _same(pred, pred_before)
    error = cv2.subtract(cv2.subtract(pred, pred_before), cv2.subtract(true, true_before))
    return float(math.sqrt(cv2.norm(error, cv2.NORM_L2SQR) / error.size) * 1e2)


def flicker(pred: Array, before: Array) -> float:
    """Mean absolute change of the matte from one picture to the next, times 1000: for pictures in which nothing
    moves, so that all change is wrong."""
    return mad(pred, before)


def boundary_f(pred: Array, true: Array, tolerance: float = 0.008, where: Array | None = None) -> float:
    """F measure of the outlines at 0.5 (Perazzi et al. 2016, DAVIS): an outline's pixel counts as found when the
    other outline passes within `tolerance` of the diagonal.

    where: bool (H, W); outlines are looked at only there. Two mattes without outlines: 1; one without: 0."""
    _same(pred, true)
    radius = math.ceil(tolerance * math.hypot(*true.shape))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    lines = [_outline(a >= 0.5) for a in (pred, true)]
    if where is not None:
        lines = [line & where for line in lines]
    near = [cv2.dilate(line.astype(np.uint8), disc).astype(bool) for line in lines]
    counts = [int(line.sum()) for line in lines]
    if not all(counts):
        return float(counts[0] == counts[1])
    precision = float((lines[0] & near[1]).sum() / counts[0])
    recall = float((lines[1] & near[0]).sum() / counts[1])
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def trail(pred: Array, true: Array, true_earlier: Array) -> float:
    """What lags behind a moving person, times 1000: mean alpha error where the truth has gone from one side to the
    other since an earlier picture (0.9 and over to 0.1 and under, or back). nan where nothing has moved that far.
    """
    _same(pred, true)
    _same(true, true_earlier)
    left = (true <= 0.1) & (true_earlier >= 0.9)
    entered = (true >= 0.9) & (true_earlier <= 0.1)
    moved = left | entered
    return float(np.abs(pred[moved] - true[moved]).mean() * 1e3) if moved.any() else math.nan


def halo(composite: Array, truth: Array, where: Array) -> float:
    """Mean colour error of a composite in the soft edge, in codes of 255.

    composite, truth: uint8 or float32 (H, W, 3) over the same new background; where: bool (H, W), the soft edge.
    nan where there is none."""
    _same(composite, truth)
    if composite.ndim != 3 or where.shape != composite.shape[:2]:
        raise ValueError(f"pictures (H, W, 3) and a mask (H, W), not {composite.shape} and {where.shape}")
    if not where.any():
        return math.nan
    return float(np.abs(composite[where].astype(np.float32) - truth[where]).mean())


def around(true: Array, width: int) -> Array:
    """bool (H, W): the ring of that many pixels outside a person's matte."""
    near = cv2.dilate((true > 0.02).astype(np.uint8), np.ones((2 * width + 1, 2 * width + 1), np.uint8))
    return np.asarray((near > 0) & (true <= 0.02))


def soft_edge(true: Array, low: float = 0.02, high: float = 0.98) -> Array:
    """bool (H, W): where a matte is neither background nor person."""
    return np.asarray((true > low) & (true < high))


def _same(a: Array, b: Array) -> None:
    if a.shape != b.shape or not a.size:
        raise ValueError(f"arrays of one shape that are not empty, not {a.shape} and {b.shape}")


def _outline(mask: Array) -> Array:
    """bool: pixels of a mask that have a neighbour outside it; the picture's border is no outline."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return np.asarray(mask & (inner == 0))


def _stretched(alpha: Array) -> Array:
    return np.asarray(
        cv2.normalize(alpha.astype(np.float32), np.empty(alpha.shape, np.float32), 1.0, 0.0, cv2.NORM_MINMAX)
    )


def _gradient(alpha: Array, sigma: float) -> Array:
    kernel = _derivative(sigma)
    x = cv2.filter2D(alpha, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    y = cv2.filter2D(alpha, -1, kernel.T, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.magnitude(x, y))


@lru_cache
def _derivative(sigma: float, epsilon: float = 1e-2) -> Array:
    """float64: the x derivative of a Gaussian, cut where it falls below epsilon, of unit L2 norm."""
    half = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * epsilon)))
    x = np.arange(-half, half + 1, dtype=np.float64)
    bell = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    kernel = np.outer(bell, -x * bell / sigma**2)
    return np.asarray(kernel / math.sqrt(float((kernel**2).sum())))
