"""What one step finds out about a plane or a matte and a later one needs too: memory is slow, and what it takes to read
a full-size plane again is often more than all that is then done with it.

Used by `rtbg.color`, `rtbg.grid`, `rtbg.upsampling`, `rtbg.foreground` and `rtbg.stillness`. Rests on planes and
mattes being only read once they are handed on (`rtbg.frame`); where nothing is known, it is found out again. Not for a
background's planes, which are valid until its next call only.
Memory bound: what is told of an array goes with it; of a plane, at most its half-size copies and a grid of means.
"""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

import cv2
import numpy as np

from rtbg.frame import Array

T = TypeVar("T")


class Known(Generic[T]):
    """By array (the very object, not its values): what is known of it, as long as it lives. Any thread."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[weakref.ref[Array], T]] = {}

    def tell(self, array: Array, what: T) -> None:
        """Remembers it, in place of what was known. `what` must not hold the array."""
        key = id(array)
        self._told[key] = weakref.ref(array, lambda _: self._told.pop(key, None)), what

    def of(self, array: Array) -> T | None:
        """What was told of that array; None: nothing."""
        ref, what = self._told.get(id(array), (None, None))
        return what if ref is not None and ref() is array else None

    def __len__(self) -> int:
        return len(self._told)


HALVES: Known[Array] = Known()  # by plane: see `halved`


def halved(plane: Array) -> Array:
    """Half the size of a plane of even sides, by area, only to be read: made once for each plane."""
    half = HALVES.of(plane)
    if half is None:
        half = np.asarray(cv2.resize(plane, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA))
        HALVES.tell(plane, half)
    return half
