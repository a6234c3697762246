"""Calm edges over time: each small matte is mixed with those before it (and, in files, with those after it).

How much the new matte weighs is decided pixel by pixel: little where nothing moves, so that noise averages out; all
where the picture has changed, so that nothing trails. All times are real ones (pts), so the result does not depend
on the frame rate. Used by `rtbg.matting`, on mattes of the network's size.
Memory bound: two small mattes and two small grey pictures; `TwoSided` holds four for each picture of `lookahead`, and
four more.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from rtbg.frame import Array
from rtbg.grid import Scratch, ramp
from rtbg.native.grid import smooth

# Seconds without a picture after which the past says nothing about the present any more.
GAP = 0.5
# Time constant in seconds of the mean where nothing moves, at strength 1; it grows with the strength.
STILL = 0.6
# The time constant is never more than this share of the time since the past began: the first mattes of a stream, made
# without a past, are its worst.
WARM_UP = 0.3
# Time constant of the grey picture that new ones are compared with. A moving average, not the picture before: so a
# slow movement adds up to the same difference at any frame rate, and the noise of one side averages out.
MEMORY = 0.1
# Codes (of 255) of local difference, above the noise, at which the new matte begins to gain and at which it rules.
CALM, MOVED = 0.5, 1.9
# Where nothing moves and the mattes still disagree, by more than noise makes them, the past is wrong more likely than
# the present: the time constant falls to ASTRAY as the disagreement rises through this range.
DISAGREE = (0.1, 0.3)
ASTRAY = 0.01
# The noise is taken from the picture's median difference; where everything moves, that is no noise: at most this.
NOISE = 1.0
# How often the noise is taken off the difference of neighbours in time, which are then summed.
STEP = 1.25


class Smoother:
    """Recursive, motion-gated mean of the mattes of one stream: what live mode can do. One thread at a time."""

    def __init__(self, strength: float = 0.5) -> None:
        """strength: 0 (mattes pass unchanged) to 1. Raises ValueError."""
        if not 0 <= strength <= 1:
            raise ValueError(f"the strength of smoothing is from 0 to 1, not {strength}")
        self.strength = strength
        self._mean: Array | None = None
        self._grey: Array | None = None  # float32, moving average
        self._time = self._age = 0.0
        self._scratch = Scratch()
        self.weight: Array = np.ones((1, 1), np.float32)  # float32 (h, w): of the last matte in the mean
        self.picture: Array = np.zeros((1, 1), np.float32)  # the last one, `steady`

    def reset(self) -> None:
        """Forgets the past: to be called at a scene cut."""
        self._mean = None

    def push(self, matte: Array, grey: Array, seconds: float) -> Array:
        """The smoothed matte at that moment: a new float32 array (the matte itself at strength 0).

        matte: float32 (h, w) in 0..1, only read. grey: uint8 (h, w), the picture it belongs to, reduced to the
        matte's size. seconds: presentation time. The past is forgotten when time runs backwards or jumps by more
        than `GAP`, and when the size changes. Raises ValueError for arrays that do not fit together."""
        check(matte, grey)
        if not self.strength:
            return matte
        elapsed = seconds - self._time
        self._time = seconds
        if self._mean is None or self._grey is None or self._mean.shape != matte.shape or not 0 <= elapsed <= GAP:
            self.picture = steady(grey)
            self._mean, self._grey, self._age = matte.copy(), self.picture.copy(), 0.0
            self.weight = np.ones_like(matte)
            return matte.copy()
        self._age += elapsed
        still = 1 - math.exp(-elapsed / max(min(STILL * self.strength, WARM_UP * self._age), 1e-6))
        self.picture, self.weight = smooth(
            matte, grey, self._mean, self._grey,
            still=still, astray=max(still, 1 - math.exp(-elapsed / ASTRAY)), disagree=DISAGREE, moved=(CALM, MOVED),
            noise=(2.0, NOISE), share=1 - math.exp(-elapsed / MEMORY), scratch=self._scratch,
        )  # fmt: skip
        return self._mean.copy()


T = TypeVar("T")


class _Moment(NamedTuple):
    matte: Array
    change: Array  # of the picture since the one before, as `changes` gives it, but never below 0
    seconds: float


class TwoSided(Generic[T]):
    """`Smoother` for streams whose future can be waited for: each matte is also averaged with the `lookahead` that
    follow, each counting where the picture has not changed by then. One thread at a time."""

    def __init__(self, strength: float = 0.5, lookahead: int = 3) -> None:
        """lookahead: pictures waited for; 0: as `Smoother`. Raises ValueError."""
        if lookahead < 0:
            raise ValueError(f"the look-ahead is 0 pictures or more, not {lookahead}")
        self._past = Smoother(strength)
        self._lookahead = lookahead if strength else 0
        self._waiting: deque[tuple[T, Array, Array, _Moment]] = deque()
        self._scratch = Scratch()

    def push(self, item: T, matte: Array, grey: Array, seconds: float) -> list[tuple[T, Array]]:
        """Takes a matte as `Smoother.push` does, with anything that is to come out with it; returns what is
        finished by now, oldest first. After a gap, or when the size changes, that is all that waited."""
        check(matte, grey)
        done: list[tuple[T, Array]] = []
        if self._waiting:
            last = self._waiting[-1][3]
            if last.matte.shape != matte.shape or not 0 <= seconds - last.seconds <= GAP:
                done = self.flush()
        before = self._past.picture
        smoothed = self._past.push(matte, grey, seconds)
        if not self._lookahead:
            return [*done, (item, smoothed)]
        picture = self._past.picture
        change = np.maximum(changes(picture, before if self._waiting else picture, STEP), 0)
        self._waiting.append((item, smoothed, self._past.weight, _Moment(matte.copy(), change, seconds)))
        if len(self._waiting) > self._lookahead:
            done.append(self._finish())
        return done

    def flush(self) -> list[tuple[T, Array]]:
        """All that waits, with what is known of its future; the past is forgotten. At the end of the stream, and
        before the first picture after a scene cut is pushed."""
        done = []
        while self._waiting:
            done.append(self._finish())
        self._past.reset()
        return done

    def _finish(self) -> tuple[T, Array]:
        item, smoothed, weight, now = self._waiting.popleft()
        # A recursive mean with the weight k stands for about 1 / k pictures.
        weights = cv2.divide(1.0, cv2.max(weight, 1e-3))  # type: ignore[call-overload]  # 0 where no time has passed
        total = cv2.multiply(smoothed, weights)
        tau = STILL * self._past.strength
        # A later picture counts only where nothing has changed on the way to it, step by step.
        way, open_, part = (self._scratch.array(name, smoothed.shape) for name in ("way", "open", "part"))
        way.fill(0)
        for *_, later in self._waiting:
            cv2.add(way, later.change, way)
            ramp(way, MOVED, CALM, open_)
            share = math.exp(-(later.seconds - now.seconds) / tau)
            cv2.add(total, cv2.multiply(open_, later.matte, part, share), total)
            cv2.scaleAdd(open_, share, weights, weights)
        return item, np.asarray(cv2.divide(total, weights, total))


def steady(grey: Array) -> Array:
    """float32: the grey picture without its finest grain."""
    return np.asarray(cv2.boxFilter(grey, cv2.CV_32F, (3, 3)))


def changes(picture: Array, reference: Array, times: float = 2.0) -> Array:
    """float32: codes by which the pictures differ around each pixel, so many times the noise taken off."""
    difference = np.asarray(cv2.blur(cv2.absdiff(picture, reference), (5, 5)))
    some = difference[::4, ::4].ravel()
    noise = min(float(np.partition(some, some.size // 2)[some.size // 2]), NOISE)
    return np.subtract(difference, np.float32(times * noise), out=difference)


def check(matte: Array, grey: Array) -> None:
    """Raises ValueError unless these are a float32 matte and a uint8 picture of one size."""
    if matte.ndim != 2 or matte.dtype != np.float32 or grey.shape != matte.shape or grey.dtype != np.uint8:
        given = f"{matte.dtype} {matte.shape} and {grey.dtype} {grey.shape}"
        raise ValueError(f"a float32 matte (h, w) and a uint8 picture of its size, not {given}")
