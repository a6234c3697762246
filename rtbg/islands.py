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
        self._faded: tuple[tuple[int, ...], Array | None, Array | None] | None = None
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
        islands, holes = _small(matte, ISLAND), _small(1 - matte, HOLE)
        if self._faded is not None and self._faded[0] == matte.shape and 0 <= elapsed <= GAP:
            share = 1 - math.exp(-elapsed / FADE)
            islands, holes = (_towards(*pair, share) for pair in zip(self._faded[1:], (islands, holes), strict=True))
        self._faded = matte.shape, islands, holes
        if islands is not None:
            matte = cv2.subtract(matte, cv2.multiply(matte, islands))
        if holes is not None:
            matte = cv2.add(matte, cv2.multiply(1 - matte, holes))
        return matte


def without_haze(matte: Array) -> Array:
    """A new float32 (h, w): 0 where the matte is at most `HAZE`, 1 where it is 1, straight in between."""
    return ramp(matte, HAZE, 1.0)


def _small(matte: Array, areas: tuple[float, float]) -> Array | None:
    """float32 (h, w): how much of each pixel is to go, 1 in the smallest regions above LEVEL, 0 outside them; None
    where none is to go."""
    solid = (matte > LEVEL).view(np.uint8)
    low, high = (a * matte.size for a in areas)
    if _all_large(solid, high):
        return None
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8, ltype=cv2.CV_16U)
    gone = np.clip((high - stats[:, cv2.CC_STAT_AREA]) / (high - low), 0, 1).astype(np.float32)
    gone[0] = 0
    if count < 2 or not gone.any():
        return None
    out = gone[labels]
    # Their soft rims lie below LEVEL: a cell more all round, but nothing of the large regions.
    wide = cv2.dilate(out, np.ones((3, 3), np.uint8))
    return np.where((labels > 0) & (out == 0), 0, wide).astype(np.float32)


def _all_large(solid: Array, size: float) -> bool:
    """Whether every region of a mask surely has that many pixels. Of outlines, which are found in a seventh of the
    time that labelling every pixel takes: a region has more pixels than its outline's polygon has area, but for its
    holes, each of which has fewer than its own polygon and the pixels along it."""
    outlines, tree = cv2.findContours(solid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(outlines) > 16:
        return False
    sizes = np.array([cv2.contourArea(o) for o in outlines])
    for k, (_, _, _, parent) in enumerate(tree[0] if len(outlines) else ()):
        if parent >= 0:
            sizes[parent] -= sizes[k] + len(outlines[k])
    return all(sizes[k] >= size for k in range(len(outlines)) if tree[0][k][3] < 0)


def _towards(past: Array | None, present: Array | None, share: float) -> Array | None:
    """The past fading into the present; None stands for zeros."""
    if past is None and present is None:
        return None
    if past is None or present is None:
        out = cv2.multiply(past, 1 - share) if present is None else cv2.multiply(present, share)  # type: ignore[call-overload]
    else:
        out = cv2.addWeighted(past, 1 - share, present, share, 0)
    out = cv2.threshold(out, 0.004, 0, cv2.THRESH_TOZERO)[1]
    return np.asarray(out) if cv2.countNonZero(out) else None
