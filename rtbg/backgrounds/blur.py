"""The real background, blurred, without the person smeared into it.

A plain blur drags the person's colours outwards: a halo around hair and shoulders. Here every pixel counts with the
weight "background" (normalised convolution, Knutsson and Westin 1993): blur(picture * weight) / blur(weight), where
the weight is 0 on the person and their edge. What lies far inside the person is filled from ever wider blurs.

All of it happens on a picture of some 100 by 60 pixels, since a blur leaves no detail that more would show.
Memory bound: one set of planes, and small pictures.
"""

from __future__ import annotations

import cv2
import numpy as np

from rtbg.backgrounds.fit import Layout, resized
from rtbg.color import reduce
from rtbg.frame import Array, Frame, StreamInfo

# Standard deviation of the blur at strength 0 and 1, in parts of the picture's shorter side. Even the weakest makes
# text on a wall and faces in the back unreadable: 16 pixels of 1080.
WEAKEST, STRONGEST = 0.015, 0.045
# Standard deviation in pixels of the small picture: below 2 the enlarged picture shows its grid.
SMALL_SIGMA = 2.0
# A small pixel with this part of person in it no longer counts as background.
TAINTED = 0.05
# How little the next wider blur counts against the narrower: it only shows where that has nothing.
FAINT = 1e-3


class BlurBackground:
    """The frame itself, blurred. strength 0..1 sets the radius, in parts of the picture's shorter side."""

    def __init__(self, strength: float, info: StreamInfo) -> None:
        self._strength, self._info = strength, info
        self._layout: Layout | None = None
        self._planes: tuple[Array, ...] = ()
        self._size = (1, 1)

    def at(self, frame: Frame, alpha: Array) -> tuple[Array, ...]:
        """See `protocols.Background`."""
        layout = Layout.of(frame)
        if layout != self._layout:
            self._planes = tuple(np.empty_like(p, order="C") for p in frame.planes[:3])
            self._size = self._small_size(frame)
            self._layout = layout
        weight = _weight(alpha, self._size)
        small = [_shrink(p, self._size).astype(np.float32) for p in frame.planes[:3]]
        for plane, blurred in zip(self._planes, fill(small, weight, SMALL_SIGMA), strict=True):
            _enlarge(blurred, plane)
        return self._planes

    def close(self) -> None:
        """Nothing to free."""

    def _small_size(self, frame: Frame) -> tuple[int, int]:
        """(width, height) at which the blur has SMALL_SIGMA, with the square pixels that a viewer sees."""
        info = resized(self._info, frame)
        w, h = info.shown_size
        sigma = (WEAKEST + (STRONGEST - WEAKEST) * self._strength) * min(w, h)
        factor = min(1.0, SMALL_SIGMA / sigma)
        if info.rotation in (90, 270):
            w, h = h, w
        return min(frame.width, max(2, round(w * factor))), min(frame.height, max(2, round(h * factor)))


def fill(planes: list[Array], weight: Array, sigma: float) -> list[Array]:
    """float32 planes blurred with the standard deviation `sigma` in pixels, counting each pixel by its `weight`
    (float32, 0..1). Where no weight is near, what is farther away fills in; with no weight at all, the plain mean."""
    h, w = weight.shape
    values = cv2.merge([*(p * weight for p in planes), weight])
    step = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    total: Array = step.copy()
    for k in range(1, 4):
        side = min(2 * round(sigma * 3**k) + 1, 2 * max(w, h) - 1)
        step = cv2.blur(step, (min(side, 2 * w - 1), min(side, 2 * h - 1)), borderType=cv2.BORDER_REFLECT)
        total += step * np.float32(FAINT**k)
    means = [float(p.mean()) for p in planes]
    everywhere = np.float32(FAINT**4)
    total += np.array([*(m * everywhere for m in means), everywhere], np.float32)
    *sums, weights = cv2.split(total)
    return [s / weights for s in sums]


def _weight(alpha: Array, size: tuple[int, int]) -> Array:
    """float32 (h, w) 0..1 of that (width, height): how far a small pixel is free of the person and the two pixels
    around them, over which a camera's chroma carries their colour. No more: to leave out the room next to the person
    costs more than what a matte that is a few pixels too small lets in (measured)."""
    if alpha.shape[1] >= 2 * size[0] and alpha.shape[0] >= 2 * size[1]:
        alpha = np.asarray(cv2.resize(alpha, (alpha.shape[1] // 2, alpha.shape[0] // 2), interpolation=cv2.INTER_AREA))
    small = _shrink(np.asarray(cv2.dilate(alpha, np.ones((3, 3), np.uint8))), size)
    return np.asarray(np.clip(1 - small.astype(np.float32) * np.float32(1 / (255 * TAINTED)), 0, 1))


def _shrink(plane: Array, size: tuple[int, int]) -> Array:
    """By area to (width, height); first by halves, for which OpenCV has a far faster path."""
    while plane.shape[1] >= 2 * size[0] and plane.shape[0] >= 2 * size[1]:
        plane = cv2.resize(plane, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return reduce(plane, size)


def _enlarge(small: Array, out: Array) -> None:
    """Writes a small float32 plane into a large one. In 16 bits where the result has 8, so that soft gradients
    do not break into the facets of the small picture's rounded codes."""
    size = (out.shape[1], out.shape[0])
    if out.dtype == np.uint16:
        cv2.resize(np.rint(small).astype(np.uint16), size, out, interpolation=cv2.INTER_LINEAR)
    else:
        fine = cv2.resize(np.rint(small * 64).astype(np.uint16), size, interpolation=cv2.INTER_LINEAR)
        cv2.convertScaleAbs(fine, out, 1 / 64)
