"""One sink of a live run, with its clock: what goes out when, and what stands in for a picture that does not come.

Used by `rtbg.live`, which has the diagram. `Cover` is what all sinks of a run share, `Outlet` is one sink's thread.
Memory bound: each outlet's link (1 picture, 2 seconds of them for one without a clock) and the last picture it sent.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rtbg.composite import black_planes
from rtbg.control import Control
from rtbg.errors import UsageError
from rtbg.frame import Array, Frame, StreamInfo
from rtbg.link import Link, LinkAborted, LinkClosed
from rtbg.options import FAILURES
from rtbg.protocols import Sink
from rtbg.stats import Latency, Stop

GAP = 1.5  # intervals without a picture after which the clock fills in
HELD = 2.0  # seconds of pictures that wait for a sink without a clock
TICK = 0.1  # seconds within which a sink without a clock notices that something is wrong


@dataclass(frozen=True, slots=True)
class Output:
    """A sink and how it is served.

    clocked: pictures are written on arrival and gaps are filled at the source's rate, for ever: a virtual camera, a
        preview. Else (a recorder) pictures are written as they come, with one covering picture when trouble begins,
        and up to two seconds of them wait while the sink is slow; it never slows down the camera.
    required: the run ends with its error when it fails. Else it is reported and dropped, unless it was the last.
    """

    sink: Sink
    clocked: bool = True
    required: bool = True


class Cover:
    """What is shown instead of the camera's pictures, and why. From any thread."""

    def __init__(self, card: tuple[Array, ...], info: StreamInfo, *, on_failure: str, patience: float) -> None:
        """card: planes as frames of `info` have them. on_failure: one of `options.FAILURES`. patience: seconds for
        which the last picture may stand in for one that does not come. Raises UsageError for another policy."""
        if on_failure not in FAILURES:
            raise UsageError(f"--on-failure is {', '.join(FAILURES[:-1])} or {FAILURES[-1]}, not {on_failure!r}")
        self._policy, self._info = on_failure, info
        self.patience = patience
        self._lock = threading.Lock()
        self._troubles: dict[str, str] = {}
        self.origin = time.perf_counter()  # where the source's time begins, on `time.perf_counter`
        self._given: tuple[Array, ...] = ()
        self.take_card(card)
        self._black = self.card.with_planes(black_planes(self.card))

    def take_card(self, planes: tuple[Array, ...]) -> bool:
        """Takes another card, copied; whether it was one. Raises ValueError when it does not fit the stream."""
        if self._given and planes[0] is self._given[0]:
            return False
        h, w = self._info.height, self._info.width
        shapes = [(h, w)] + [(-(-h // self._info.chroma[1]), -(-w // self._info.chroma[0]))] * 2
        if [p.shape for p in planes] != shapes or any(p.dtype != np.uint8 for p in planes):
            raise ValueError(f"the card {[p.shape for p in planes]} does not have the planes of a {w}x{h} stream")
        self.card = Frame(tuple(p.copy() for p in planes), 0, self._info.time_base, self._info.color)
        self._given = planes
        return True

    def report(self, stage: str, message: str) -> None:
        """Something is wrong with a stage: sinks cover from their next picture on."""
        with self._lock:
            self._troubles[stage] = " ".join(message.split())

    def clear(self, *stages: str) -> None:
        """These stages are well again."""
        if self._troubles:
            with self._lock:
                for stage in stages:
                    self._troubles.pop(stage, None)

    @property
    def trouble(self) -> str:
        """What is wrong now, one line; empty: nothing."""
        with self._lock:
            return "; ".join(self._troubles.values())

    @property
    def troubled(self) -> bool:
        """Whether anything is wrong now."""
        return bool(self._troubles)

    def picture(self, last: Frame | None, *, started: bool = True) -> Frame:
        """What covers. last: the last finished composite. started: False before anything went wrong or right."""
        if self._policy == "freeze" and last is not None:
            return last
        return self._black if self._policy == "black" and started else self.card

    def stamped(self, frame: Frame) -> Frame:
        """The picture as one of this moment, in the source's time."""
        now = time.perf_counter()
        return replace(frame, pts=round((now - self.origin) / frame.time_base), captured=now)


class Outlet:
    """One sink's thread: `run` is its body, `give` its entrance. The counts are only written by that thread."""

    def __init__(self, output: Output, cover: Cover, control: Control, info: StreamInfo) -> None:
        rate = float(info.rate) if info.rate > 0 else 30.0
        self.sink, self.clocked, self.required = output.sink, output.clocked, output.required
        self.link: Link[Frame] = Link(1 if output.clocked else max(1, round(HELD * rate)), live=True)
        self.sent = self.filled = self.covered = self.late = 0
        self.latency = Latency()
        self.seconds = 0.0  # spent in the sink
        self.lost = False
        self._cover, self._control = cover, control
        self._interval = 1 / rate
        self._patience = max(cover.patience, GAP * self._interval)  # a slow camera's next picture is not late yet
        self._last: Frame | None = None  # the last composite that was sent
        self._last_at = 0.0
        self._shown: Frame | None = None  # the last picture of any kind that was sent
        self._covering = False  # from trouble until the next composite
        self._covered_at = 0.0  # when that began

    def give(self, frame: Frame) -> None:
        """Hands over a finished picture; never waits. One that has ended takes none."""
        with suppress(LinkAborted, LinkClosed):  # the sink is gone or closing: the run decides what becomes of it
            self.link.put(frame)

    def run(self, stop: Stop) -> Path | None:
        """Sends until the link is closed, then closes the sink: its output. A virtual camera's reader keeps the last
        picture, so that is never the camera's, however this ends. A recorder that was stopped before there was a
        picture is aborted: that is no fault. Raises LinkAborted, and what the sink raises."""
        try:
            if self.clocked:
                self._clock()
            else:
                self._record()
        except LinkAborted:
            if self.clocked:
                self._write(self._cover.stamped(self._cover.picture(None)))
            raise
        if self.clocked:
            self._write(self._cover.stamped(self._cover.picture(None)))
        elif self._shown is None and stop.ended:
            self.sink.abort()
            return None
        else:
            self._lengthen()
        return self.sink.close()

    def _clock(self) -> None:
        due = time.perf_counter()  # the first picture is the card, at once
        while True:
            try:
                frame = self.link.get(max(0.0, due - time.perf_counter()))
            except TimeoutError:
                self._fill()
                due = max(due + self._interval, time.perf_counter())
                continue
            if frame is None:
                return
            if self._control.frozen:
                continue
            # Too old, or taken before the cover went out: that stays until there is a picture from after the trouble.
            if time.perf_counter() - frame.captured > self._cover.patience or frame.captured < self._covered_at:
                self.late += 1
                continue
            self._send(frame)
            due = self._last_at + GAP * self._interval

    def _fill(self) -> None:
        now, cover = time.perf_counter(), self._cover
        covered = True
        if self._control.frozen and not self._covering:
            picture = self._last or cover.card
            self._last_at = now  # it is shown now: at the end of the freeze it may stand in as if it were new
        else:  # what covers is kept by a freeze too, which is not to show anybody again
            if not self._covering and (cover.troubled or now - self._last_at > self._patience):
                self._covering, self._covered_at = True, now
            if self._last is not None and not self._covering:
                picture, covered = self._last, False
            else:
                picture = cover.picture(self._last, started=self._last is not None or cover.troubled)
        self._write(cover.stamped(picture))
        self.filled += 1
        self.covered += covered

    def _record(self) -> None:
        while True:
            try:
                frame = self.link.get(TICK)
            except TimeoutError:
                self._cover_once()
                continue
            if frame is None:
                return
            if self._control.frozen or not self._follows(frame):
                continue  # frozen: the last picture lasts; else one that was under way when it was covered
            self._send(frame)

    def _follows(self, frame: Frame) -> bool:
        """Whether it comes after what was shown. A covering picture before the camera's first one has a pts that was
        guessed, since the source's time was not known then: the moment counts too."""
        shown = self._shown
        return shown is None or (frame.pts > shown.pts and frame.captured > shown.captured)

    def _cover_once(self) -> None:
        now = time.perf_counter()
        if self._control.frozen:
            self._last_at = now
        stale = self._last is not None and now - self._last_at > self._patience
        if self._control.frozen or self._covering or not (stale or self._cover.troubled):
            return
        self._covering = True
        picture = self._cover.picture(self._last)
        if picture is not self._last:
            self._write(self._cover.stamped(picture))
            self.filled += 1
            self.covered += 1

    def _lengthen(self) -> None:
        """The last picture of a recording lasts to its end, also where it was shown for long."""
        if self._shown is not None:
            again = self._cover.stamped(self._shown)
            if again.seconds - self._shown.seconds > GAP * self._interval:
                self._write(again)

    def _send(self, frame: Frame) -> None:
        self._write(frame)
        now = time.perf_counter()
        self.latency.add(now - frame.captured)
        self._last, self._last_at, self._covering = frame, now, False
        self.sent += 1

    def _write(self, frame: Frame) -> None:
        began = time.perf_counter()
        self.sink.write(frame)
        self.seconds += time.perf_counter() - began
        self._shown = frame
