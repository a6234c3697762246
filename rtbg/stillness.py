"""Whether the camera's picture is still the one that was last inferred, so that its composite can be sent again.

Luma and chroma are averaged over blocks (8 by 8 samples at 720p), which leaves an eighth of a sensor's noise, and the
*largest* difference of a block decides: a blink changes two blocks, and the mean over the picture not at all. What
noise does is read off the same differences: the lower half of them, which movement does not reach unless half of the
picture moves. A change of all blocks together (exposure, a lamp) shows in the mean with its sign.

Chosen so (measured by tests/test_stillness.py): a picture with a noise of sigma 2 to 6 counts as still at 720p; a spot
of 12 by 6 pixels that differs by 30 codes is seen wherever it lies on the blocks (it makes 8 codes in one of them at
least). More noise than that counts as change: the gate errs on the side of inferring.

Used by `rtbg.live`. Memory bound: block means of two pictures. 0.1 ms at 720p on one core.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from rtbg.frame import Array, Frame
from rtbg.grid import Scratch
from rtbg.known import HALVES
from rtbg.native.grid import blocks

# Seconds between two inferences at most: `rtbg.matting` forgets its past after 0.5, and pictures come unevenly.
LONGEST = 0.45
ROWS = 90  # of blocks, at least
DEVIATIONS = 6.0  # of the noise that a block may differ by: one picture in tens of thousands does by chance
# The limits of that in codes, the upper one for blocks of up to 4 and of 8 and more: below what the spot makes of them.
LEAST, MOST_SMALL, MOST = 1.5, 10.0, 6.5
SHIFT = 0.5  # codes by which the whole picture may become lighter or darker
_LOWER = 0.3246  # mean of the lower half of |x| where x has a normal distribution of deviation 1


class StillGate:
    """Compares each picture with the last one that was inferred. One thread at a time."""

    def __init__(self) -> None:
        self._now: list[Array] = []
        self._then: list[Array] = []
        self._time = self._inferred = 0.0
        self._scratch = Scratch()

    def still(self, frame: Frame) -> bool:
        """Whether the frame shows what the last inferred one showed, and the one after it will still come in time to
        be inferred (at the pace of the last two). To be called for every 8-bit frame, in order."""
        step, self._time = frame.seconds - self._time, frame.seconds
        halvings = max(1, int(math.log2(max(2, frame.height / ROWS))))
        self._now = [self._blocks(p, 1 << halvings) for p in frame.planes[:3]]
        if not self._then or step <= 0 or self._time - self._inferred + step > LONGEST:
            return False
        most = MOST if halvings > 2 else MOST_SMALL
        return not any(_changed(a, b, most) for a, b in zip(self._now, self._then, strict=True))

    def _blocks(self, plane: Array, side: int) -> Array:
        """float32: means of a plane's blocks. In the same pass its half, which the network's input is made of."""
        height, width = plane.shape
        half = None if height % 2 or width % 2 else np.empty((height // 2, width // 2), np.uint8)
        means = blocks(plane, side, half, self._scratch)
        if half is not None:
            HALVES.tell(plane, half)
        return means

    def inferred(self) -> None:
        """The last frame given to `still` was inferred."""
        self._then, self._inferred = self._now, self._time

    def forget(self) -> None:
        """Whatever comes next is to be inferred."""
        self._then = []


def _changed(now: Array, then: Array, most: float) -> bool:
    """Whether block means differ by more than their noise, or than `most`."""
    if now.shape != then.shape:
        return True
    difference = cv2.absdiff(now, then)
    largest = cv2.minMaxLoc(difference)[1]
    if largest > most:
        return True
    if largest > LEAST:
        some = difference[::3, ::3].ravel()
        half = some.size // 2
        noise = float(np.partition(some, half)[: half + 1].mean()) / _LOWER
        if largest > max(LEAST, DEVIATIONS * noise):
            return True
    return abs(cv2.mean(now)[0] - cv2.mean(then)[0]) > SHIFT
