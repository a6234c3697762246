"""From a frame to its alpha matte: reduction, network, smoothing, enlargement; owner of the temporal state.

Used by `rtbg.pipeline` and `rtbg.api`. Memory bound: a few small pictures and mattes, `lookahead` frames, and what
`rtbg.upsampling` keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np

from engines import Engine, EngineError, StatefulEngine, nearest_size
from rtbg.color import small_rgb
from rtbg.errors import MattingError
from rtbg.foreground import reshaped
from rtbg.frame import Array, Frame, StreamInfo
from rtbg.islands import Islands, without_haze
from rtbg.smoothing import TwoSided
from rtbg.upsampling import Edge, Upsampler, shaped

# A scene cut: the small pictures differ on average by more than this share of their mean, in dim light as in bright,
# but within these bounds (codes of 255). A hand-held camera on the move stays below 0.2, people in front of a fixed one
# below 0.15; cuts lie mostly above 0.4.
CUT, CUT_WITHIN = 0.27, (6.0, 28.0)
# Seconds without a picture after which the past says nothing about the present any more.
GAP = 0.5

# What the network gets for a code of 8 bits: a table, since OpenCV looks up faster than NumPy converts and multiplies.
_SHARES = np.arange(256, dtype=np.float32) * np.float32(1 / 255)

# How far two mattes of a still picture are apart where their mean counts less and less, and not at all.
CONTRADICT = 0.3, 0.6

_TURN = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
_TURN_BACK = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True, slots=True)
class Refinement:
    """What is done to the network's matte. smoothing: 0 to 1, see `rtbg.smoothing`. lookahead: frames of the future
    to wait for. islands: whether tiny islands, pin-holes and haze go. guided: whether the edge follows the picture's,
    see `rtbg.upsampling`. edge: what is done to it in the end."""

    smoothing: float = 0.5
    lookahead: int = 0
    islands: bool = True
    guided: bool = True
    edge: Edge = field(default_factory=Edge)


# The network's matte enlarged bilinearly, and nothing else.
RAW = Refinement(smoothing=0.0, islands=False, guided=False)


class Look:
    """A network at the one of its sizes that fits a stream: what it sees of a frame, and its raw matte of that.

    engine: its own, and stays the caller's. past: float32 (h, w) in 0..1, to be written into: what it takes for its
    matte of the picture before, upright as its mattes are."""

    def __init__(self, engine: Engine, info: StreamInfo) -> None:
        self.engine = engine
        self._turn = info.rotation
        width, height = nearest_size(engine.spec.sizes, *info.shown_size)
        self._stored = (height, width) if info.rotation in (90, 270) else (width, height)
        self._input = np.zeros((1, 4, height, width), np.float32)
        self._colours = [np.zeros((height, width), np.uint8) for _ in range(3)]
        self.past: Array = self._input[0, 3]

    def reduce(self, frame: Frame) -> Array:
        """uint8 (h, w, 3): a frame's RGB at the network's size, as the frame is stored."""
        return small_rgb(frame.planes, frame.color, *self._stored)

    def see(self, small: Array) -> None:
        """Takes what `reduce` gave as the picture of the next `matte`."""
        if self._turn:
            small = cv2.rotate(small, _TURN[self._turn])
        for plane, target in zip(cv2.split(small, self._colours), self._input[0], strict=False):
            cv2.LUT(plane, _SHARES, target)

    def matte(self, *, mirrored: bool = False) -> Array:
        """float32 (h, w) in 0..1, upright: the network's matte of the picture; mirrored: from how it looks in a mirror.
        Raises MattingError for anything that is not one."""
        frame = np.ascontiguousarray(self._input[..., ::-1]) if mirrored else self._input
        try:
            alpha = self.engine.infer({"frame": frame})["alpha"]
        except EngineError as exc:
            raise MattingError(str(exc)) from exc
        if alpha.shape != (1, 1, *self._input.shape[2:]):
            raise MattingError(
                f"{self.engine.device} answered a matte of shape {alpha.shape} for {self._input.shape[2:]}"
            )
        # A NaN is in no order, so least and most do not tell of one; a sum does. Just these two, and no `np.clip` where
        # there is nothing to clip: the network has emptied the processor's caches, and what runs once a picture takes
        # ten times as long as in a loop (that one 0.25 ms, for the code around it).
        low, high, _, _ = cv2.minMaxLoc(alpha[0, 0])
        if not (low >= -0.01 and high <= 1.01) or math.isnan(cv2.norm(alpha[0, 0], cv2.NORM_L1)):
            raise MattingError(f"{self.engine.device} answered values outside 0..1: the matte cannot be trusted")
        matte: Array = np.array(alpha[0, 0], np.float32)  # a copy: the engine writes its next answer over this one
        if low < 0 or high > 1:
            np.clip(matte, 0, 1, out=matte)
        return matte[:, ::-1] if mirrored else matte

    def stored(self, matte: Array) -> Array:
        """A matte turned as the frame is stored."""
        return np.asarray(cv2.rotate(matte, _TURN_BACK[self._turn])) if self._turn else matte


def look_closely(looks: Sequence[Look], frame: Frame) -> Array:
    """A still picture's matte by several networks, float32 (h, w), upright, of the first one's size: each looks at it
    and at its mirror image, twice, the second time with the mean of what all saw at first as its past; the mean of what
    they see then is the matte, but where the first and the last contradict one another it is the last one's: half of a
    thing would be seen through. What that gains is in `training/EXPERIMENTS.md`. Raises MattingError."""
    for look in looks:
        look.see(look.reduce(frame))
        look.past[:] = 0
    for _ in range(2):
        both = [(look.matte() + look.matte(mirrored=True)) / 2 for look in looks]
        height, width = both[0].shape
        mattes = [cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in both]
        mean = np.mean(mattes, axis=0)
        for look in looks:
            cv2.resize(mean, look.past.shape[::-1], dst=look.past, interpolation=cv2.INTER_AREA)
    low, high = CONTRADICT
    share = np.clip((cv2.absdiff(mattes[0], mattes[-1]) - low) / (high - low), 0, 1)
    return np.asarray(mean + share * (mattes[-1] - mean))


class Matting:
    """Mattes the pictures of one stream, in order. One thread at a time.

    The network sees the picture upright (`info.rotation`) with square pixels, at the one of its input sizes
    that is nearest in shape, together with its own raw matte of the picture before; that past is forgotten at
    a scene cut, after a gap of half a second, and when time runs backwards. So is the engine's own, where it has
    one (`StatefulEngine`); such an engine serves one stream at a time.
    """

    Alpha: TypeAlias = Array

    def __init__(
        self, engine: Engine, info: StreamInfo, refinement: Refinement = RAW, closely: Sequence[Engine] = ()
    ) -> None:
        """closely: for still pictures, which are no stream: all the networks that look at each (`look_closely`),
        `engine` first; empty: it alone looks, once, and knows its past."""
        self.engine = engine
        self._look = Look(engine, info)
        self._looks = [self._look, *(Look(other, info) for other in closely[1:])] if closely else []
        self._seen: Array | None = None  # small grey picture of the frame before
        self._time = 0.0
        self._smoothing: TwoSided[Frame] = TwoSided(refinement.smoothing, refinement.lookahead)
        self._islands = Islands() if refinement.islands else None
        self._upsampling = Upsampler(guided=refinement.guided)
        self._edge = refinement.edge

    def push(self, frame: Frame) -> list[tuple[Frame, Array]]:
        """Takes the next frame; returns the frames that are now finished, each with its matte, uint8 (H, W),
        0 background to 255 person, at the frame's own size. Where the edge was given another shape (`Edge`), it
        is another frame of that time: that of a person of that shape, see `rtbg.foreground.reshaped`.
        The mattes are only to be read: they are the past of those that follow. Raises MattingError."""
        look = self._look
        small = look.reduce(frame)
        grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
        done = self.flush() if self._forget(grey, frame.seconds) else []
        if self._looks:
            alpha = look_closely(self._looks, frame)
        else:
            look.see(small)
            alpha = look.matte()
            np.copyto(look.past, alpha)
        finished = self._smoothing.push(frame, look.stored(alpha), grey, frame.seconds)
        return done + [self._enlarged(m, f) for f, m in finished]

    def flush(self) -> list[tuple[Frame, Array]]:
        """End of stream: the frames held back for their future, as `push` returns them."""
        done = [self._enlarged(m, f) for f, m in self._smoothing.flush()]
        self._upsampling.reset()
        if self._islands is not None:
            self._islands.reset()
        return done

    def reset(self) -> None:
        """Forgets the past, and the frames held back."""
        self._seen = None
        self.flush()

    def _enlarged(self, matte: Array, frame: Frame) -> tuple[Frame, Array]:
        """The frame and its matte, as `push` returns them."""
        if self._islands is not None:
            matte = without_haze(self._islands.push(matte, frame.seconds))
        alpha = self._upsampling(matte, frame.planes, frame.seconds)
        if self._edge.plain:
            return frame, alpha
        edged = shaped(alpha, self._edge)
        planes = reshaped(frame.planes, alpha, edged)
        return (frame if planes[0] is frame.planes[0] else frame.with_planes(planes)), edged

    def _forget(self, grey: Array, seconds: float) -> bool:
        """Clears the network's past where it no longer applies, and remembers this picture; whether it did."""
        elapsed = seconds - self._time
        last = self._seen
        new = last is None or _is_cut(grey, last) or not 0 <= elapsed <= GAP
        if new:
            self._look.past[:] = 0
            if isinstance(self.engine, StatefulEngine):
                self.engine.reset()
        self._seen, self._time = grey, seconds
        return new


def _is_cut(grey: Array, last: Array) -> bool:
    """Below the upper bound a step of the light everywhere, as of a screen in a dim room, counts for nothing."""
    least, most = CUT_WITHIN
    change = cv2.norm(grey, last, cv2.NORM_L1) / grey.size
    if change <= least or change > most:
        return change > most
    now, before = cv2.mean(grey)[0], cv2.mean(last)[0]
    beside = cv2.absdiff(cv2.subtract(grey, last, dtype=cv2.CV_32F), np.full(1, now - before))
    return cv2.mean(beside)[0] > max(least, CUT * (now + before) / 2)
