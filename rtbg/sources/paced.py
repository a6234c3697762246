"""A file in the part of a camera: its pictures in real time, over and over. Used for `--webcam clip.mp4`.

    decoding thread                                   reader
    open_source ─▶ I420 ─▶ at most `_AHEAD` pictures ─▶ read: waits until one is due, leaves out what is late

Memory: `_AHEAD` pictures and what the file's decoder holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from rtbg.color import reduce, tagged
from rtbg.errors import InputError, NoPicture
from rtbg.frame import Array, Frame, StreamInfo
from rtbg.protocols import Source
from rtbg.sources import open_source
from rtbg.sources.i420 import I420, WORKING, even

_log = logging.getLogger("rtbg")
_AHEAD = 4  # pictures decoded before they are due
_STILL_RATE = 30
_LONGEST = 0.5  # seconds: a picture shown for longer is given again, as a camera would
# Seconds: when pictures are later than that, the clip goes on from there instead of catching up. `rtbg.live` shows none
# that is half a second old when it is finished.
_BEHIND = 0.25
_PATIENCE = 1.0
_LEAVE = 2.0  # seconds that a decoder or a disk has to come back once nobody reads
_LOOSE = 0.1  # of an interval by which a picture may be early and still be the tick's: times are rounded in files
_TURN = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class PacedSource:
    """A video or picture file as live pictures: 8-bit I420, BT.601, limited range, upright, in real time.

    size: None: the file's own as a viewer sees it, to the even number below; another is covered, the middle kept.
    rate: None: the file's own times (a still picture: 30 a second); else a picture every 1/rate seconds, the one that
    the file shows then: it plays neither faster nor slower. mirror: left and right change places. loop: from the
    beginning again at the end, for ever; False: `read` gives None there. Time starts with the first `read`. A picture
    that is due when a later one is due already is left out (`dropped`). Time base 1/1000000, pts counts from when the
    source was made; `captured` is the moment at which the picture was due.
    Raises InputError where the file cannot be read; NoPicture from `read` when there is none for about a second."""

    live = True

    def __init__(
        self,
        path: str | Path,
        *,
        size: tuple[int, int] | None = None,
        rate: int | float | Fraction | None = None,
        mirror: bool = False,
        loop: bool = True,
    ) -> None:
        self._path, self._loop = Path(path), loop
        self._source: Source | None = open_source(self._path)
        of = self._source.info
        shown = even(size or of.shown_size)
        self._rate = None if rate is None else Fraction(rate).limit_denominator(1001)
        if self._rate is None and of.still:
            self._rate = Fraction(_STILL_RATE)
        self._step = float(1 / (self._rate or of.rate))
        self.info = StreamInfo(*shown, time_base=Fraction(1, 1_000_000), rate=self._rate or of.rate, color=WORKING)
        self.obtained = f"{self._path.name}: {shown[0]}x{shown[1]} at {float(self.info.rate):.4g}, a file"
        self.dropped = 0
        self._to_i420 = I420(shown, mirror=mirror)
        self._changed = threading.Condition()
        self._ready: deque[tuple[float, tuple[Array, ...]]] = deque()  # seconds of the clip, planes
        self._made = time.perf_counter()
        self._begun: float | None = None  # time.perf_counter() at the clip's second 0
        self._pts = -1
        self._ended = self._closed = False
        self._trouble = ""
        self._thread: threading.Thread | None = None

    def read(self) -> Frame | None:
        """The newest picture that is due, once; waits for the next one. None at the end and after `close`."""
        deadline = time.perf_counter() + _PATIENCE
        with self._changed:
            if self._thread is None and not self._closed:
                # Daemonic: a disk may block it for ever, and must not keep the program from ending.
                self._thread = threading.Thread(target=self._decode, name="rtbg-paced", daemon=True)
                self._thread.start()
            while not self._closed:
                now = time.perf_counter()
                wait = deadline - now
                if self._ready:
                    if self._begun is None:
                        self._begun = now - self._ready[0][0]
                    while len(self._ready) > 1 and self._begun + self._ready[1][0] <= now:
                        self._ready.popleft()
                        self.dropped += 1
                        self._changed.notify_all()
                    due = self._begun + self._ready[0][0]
                    if due <= now:
                        return self._give(due, now)
                    wait = min(wait, due - now)
                elif self._ended:
                    return None
                if now >= deadline:
                    raise NoPicture(self._trouble or f"{self._path} is not decoded in real time: take a smaller clip")
                self._changed.wait(max(0.0, wait))
        return None

    def close(self) -> None:
        """Ends the stream and frees the file; within two seconds, even when its disk does not answer."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_LEAVE)
            if self._thread.is_alive():  # which frees the file, should it come back
                _log.warning("%s does not answer: it is left to itself", self._path)
                return
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _give(self, due: float, now: float) -> Frame:
        _, planes = self._ready.popleft()
        self._changed.notify_all()
        assert self._begun is not None
        if now - due > _BEHIND:
            self._begun += now - due
            due = now
        self._pts = max(self._pts + 1, round((due - self._made) * 1_000_000))
        return Frame(planes, self._pts, self.info.time_base, WORKING, due)

    # -- the decoding thread --

    def _decode(self) -> None:
        """Fills `_ready` until the end or `close`; tries again where the file cannot be read for a while."""
        begin = 0.0
        while not self._closed:
            try:
                begin = self._once(begin)
                if not self._loop:
                    break
            except InputError as exc:
                self._fail(f"{exc}; rtbg keeps trying")
            except Exception as exc:  # nobody reads this thread's errors: `read` has to tell
                self._fail(f"{self._path} cannot be decoded ({exc}); rtbg keeps trying")
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _once(self, begin: float) -> float:
        """The whole clip, its first picture at second `begin`; returns when the next run begins."""
        if self._source is None:
            self._source = open_source(self._path)
        source = self._source
        at, shown = begin, None
        before: Frame | None = None
        resampled = self._rate is not None and not source.info.still
        pictures = self._resampled(source) if resampled else self._timed(source)
        try:
            for seconds, frame in pictures:
                at = begin + seconds
                while shown is not None and at - shown[0] > _LONGEST and not self._closed:
                    shown = (shown[0] + _LONGEST, shown[1])
                    self._put(*shown)
                again = shown is not None and frame is before
                shown = (at, shown[1] if shown is not None and again else self._planes(frame, source.info))
                before = frame
                if not self._put(*shown):
                    break
                if source.info.still:
                    while self._loop and self._put(at := at + self._step, shown[1]):
                        pass
        finally:
            self._source = None
            source.close()
        return at + self._step

    def _timed(self, source: Source) -> Iterator[tuple[float, Frame]]:
        """The pictures with the seconds from the first one to each."""
        first: float | None = None
        while (frame := source.read()) is not None:
            first = frame.seconds if first is None else first
            yield frame.seconds - first, frame
        if first is None:
            raise InputError(f"{self._path} holds no picture that can be decoded")

    def _resampled(self, source: Source) -> Iterator[tuple[float, Frame]]:
        """For each tick of the rate the picture that the file shows then; the last one for as long as the others."""
        assert self._rate is not None
        ticks = (float(k / self._rate) for k in count())
        loose = _LOOSE * self._step
        tick, at, length = next(ticks), 0.0, float(1 / source.info.rate)
        shown: Frame | None = None
        for seconds, frame in self._timed(source):
            if shown is not None:
                length = seconds - at
            while shown is not None and tick < seconds - loose:
                yield tick, shown
                tick = next(ticks)
            shown, at = frame, seconds
        while shown is not None and tick < at + length - loose:
            yield tick, shown
            tick = next(ticks)

    def _planes(self, frame: Frame, info: StreamInfo) -> tuple[Array, ...]:
        """As a camera would give it: upright, with square pixels, in the working format."""
        planes = frame.planes[:3]
        if info.sample_aspect != 1:
            width, height = info.shown_size if info.rotation in (0, 180) else info.shown_size[::-1]
            sx, sy = frame.chroma
            small = (-(-width // sx), -(-height // sy))
            planes = tuple(reduce(plane, small if k else (width, height)) for k, plane in enumerate(planes))
        if info.rotation:
            planes = tuple(np.asarray(cv2.rotate(plane, _TURN[info.rotation])) for plane in planes)
        return self._to_i420.planes(planes, tagged(frame.color, frame.height))

    def _put(self, at: float, planes: tuple[Array, ...]) -> bool:
        """Hands a picture on when there is room; whether more are wanted."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < _AHEAD or self._closed)
            if not self._closed:
                self._trouble = ""
                self._ready.append((at, planes))
                self._changed.notify_all()
            return not self._closed

    def _fail(self, message: str) -> None:
        with self._changed:
            self._trouble = message
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed, _PATIENCE)
