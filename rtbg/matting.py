"""From a frame to its alpha matte: reduction, network, enlargement; owner of the temporal state.

Used by `rtbg.pipeline` and `rtbg.api`. Memory bound: two small pictures and one small matte.
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np

from engines import Engine, EngineError, StatefulEngine, nearest_size
from rtbg.color import small_rgb
from rtbg.errors import MattingError
from rtbg.frame import Array, Frame, StreamInfo

# A scene cut: the small pictures differ by this much on average (of 255). People moving in front of a fixed
# camera stay below 15, cuts between scenes lie mostly above 40.
CUT = 28.0
# Seconds without a picture after which the past says nothing about the present any more.
GAP = 0.5

_TURN = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
_TURN_BACK = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


class Matting:
    """Mattes the pictures of one stream, in order. One thread at a time.

    The network sees the picture upright (`info.rotation`) with square pixels, at the one of its input sizes
    that is nearest in shape, together with its own raw matte of the picture before; that past is forgotten at
    a scene cut, after a gap of half a second, and when time runs backwards. So is the engine's own, where it has
    one (`StatefulEngine`); such an engine serves one stream at a time.
    """

    Alpha: TypeAlias = Array

    def __init__(self, engine: Engine, info: StreamInfo) -> None:
        self.engine = engine
        self._turn = info.rotation
        width, height = nearest_size(engine.spec.sizes, *info.shown_size)
        self._stored = (height, width) if info.rotation in (90, 270) else (width, height)
        self._input = np.zeros((1, 4, height, width), np.float32)
        self._seen: Array | None = None  # small grey picture of the frame before
        self._time = 0.0

    def push(self, frame: Frame) -> list[tuple[Frame, Array]]:
        """Takes the next frame; returns the frames that are now finished, each with its matte, uint8 (H, W),
        0 background to 255 person, at the frame's own size. Raises MattingError."""
        return [(frame, self._matte(frame))]

    def flush(self) -> list[tuple[Frame, Array]]:
        """End of stream: the frames held back for their future, as `push` returns them."""
        return []

    def reset(self) -> None:
        """Forgets the past."""
        self._seen = None

    def _matte(self, frame: Frame) -> Array:
        small = small_rgb(frame.planes, frame.color, *self._stored)
        if self._turn:
            small = cv2.rotate(small, _TURN[self._turn])
        self._forget(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), frame.seconds)
        for plane, target in zip(cv2.split(small), self._input[0], strict=False):
            np.multiply(plane, np.float32(1 / 255), out=target)
        alpha = self._infer()
        np.copyto(self._input[0, 3], alpha)
        matte = cv2.convertScaleAbs(alpha, alpha=255)
        if self._turn:
            matte = cv2.rotate(matte, _TURN_BACK[self._turn])
        return np.asarray(cv2.resize(matte, (frame.width, frame.height), interpolation=cv2.INTER_LINEAR))

    def _forget(self, grey: Array, seconds: float) -> None:
        """Clears the past where it no longer applies, and remembers this picture."""
        elapsed = seconds - self._time
        last = self._seen
        cut = last is None or cv2.norm(grey, last, cv2.NORM_L1) > CUT * grey.size
        if cut or not 0 <= elapsed <= GAP:
            self._input[0, 3] = 0
            if isinstance(self.engine, StatefulEngine):
                self.engine.reset()
        self._seen, self._time = np.asarray(grey), seconds

    def _infer(self) -> Array:
        """The network's raw matte, float32 (h, w). Raises MattingError for anything that is not one."""
        try:
            alpha = self.engine.infer({"frame": self._input})["alpha"]
        except EngineError as exc:
            raise MattingError(str(exc)) from exc
        if alpha.shape != (1, 1, *self._input.shape[2:]):
            raise MattingError(
                f"{self.engine.device} answered a matte of shape {alpha.shape} for {self._input.shape[2:]}"
            )
        low, high, _, _ = cv2.minMaxLoc(alpha[0, 0])
        if not (low >= -0.01 and high <= 1.01) or np.isnan(alpha.sum()):
            raise MattingError(f"{self.engine.device} answered values outside 0..1: the matte cannot be trusted")
        return np.asarray(alpha[0, 0], dtype=np.float32)
