"""Tiny islands of person, pin-holes in the person and faint haze, taken out of small mattes without a step in time.

What is too small to be meant is decided by area, with a ramp, so that something that grows comes in smoothly; and what
is taken out fades within a tenth of a second when that changes at once (a finger meets its hand). Used by
`rtbg.matting` after smoothing. Memory bound: two small pictures.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from rtbg.frame import Array
from rtbg.grid import ramp

# Areas as shares of the picture: up to the first gone, from the second on kept. A head at the far end of a room has
# about 0.003; the gap between glasses and cheek 0.0005.
ISLAND = (0.0004, 0.0016)
HOLE = (0.00008, 0.0003)
# Alpha above which a pixel belongs to an island; a hole's lies below 1 less that.
LEVEL = 0.25
FADE = 0.06  # seconds
# Alpha up to which a small matte only doubts: a haze around people, wider than their edge. What lies above is stretched
# to begin at 0 (measured: an eighth less error, a tenth less flicker, and no less hair).
HAZE = 0.1
GAP = 0.5


class Islands:
    """Removes islands and pin-holes from the mattes of one stream. One thread at a time."""

    def __init__(self) -> None:
        self._faded: tuple[Array, Array] | None = None
        self._time = 0.0

    def reset(self) -> None:
        """Forgets the past: to be called at a scene cut."""
        self._faded = None

    def push(self, matte: Array, seconds: float) -> Array:
        """float32 (h, w): the matte without them; the matte itself where there are none.

        matte: float32 (h, w) in 0..1, only read. seconds: presentation time; the past is forgotten when it runs
        backwards or jumps by more than half a second, and when the size changes."""
        elapsed = seconds - self._time
        self._time = seconds
        found = _small(matte, ISLAND), _small(1 - matte, HOLE)
        past = self._faded
        if past is None or past[0].shape != matte.shape or not 0 <= elapsed <= GAP:
            self._faded = found
        else:
            share = 1 - math.exp(-elapsed / FADE)
            self._faded = (_towards(past[0], found[0], share), _towards(past[1], found[1], share))
        islands, holes = self._faded
        if not (cv2.countNonZero(islands) or cv2.countNonZero(holes)):
            return matte
        kept = cv2.subtract(matte, cv2.multiply(matte, islands))
        return np.asarray(cv2.add(kept, cv2.multiply(1 - kept, holes)))


def without_haze(matte: Array) -> Array:
    """A new float32 (h, w): 0 where the matte is at most `HAZE`, 1 where it is 1, straight in between."""
    return ramp(matte, HAZE, 1.0)


def _small(matte: Array, areas: tuple[float, float]) -> Array:
    """float32 (h, w): how much of each pixel is to go, 1 in the smallest regions above LEVEL, 0 outside them."""
    solid = (matte > LEVEL).view(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8, ltype=cv2.CV_16U)
    low, high = (a * matte.size for a in areas)
    gone = np.clip((high - stats[:, cv2.CC_STAT_AREA]) / (high - low), 0, 1).astype(np.float32)
    gone[0] = 0
    if count < 2 or not gone.any():
        return np.zeros_like(matte)
    out = gone[labels]
    # Their soft rims lie below LEVEL: a cell more all round, but nothing of the large regions.
    wide = cv2.dilate(out, np.ones((3, 3), np.uint8))
    return np.where((labels > 0) & (out == 0), 0, wide).astype(np.float32)


def _towards(past: Array, present: Array, share: float) -> Array:
    out = cv2.addWeighted(past, 1 - share, present, share, 0)
    return np.asarray(cv2.threshold(out, 0.004, 0, cv2.THRESH_TOZERO)[1])
