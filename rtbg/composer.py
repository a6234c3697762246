"""The middle of a live run: from the camera's picture to the composite that may leave, or to what is wrong.

Used by `rtbg.live`, on its matting thread, which has the diagram. Everything that can fail on the way (the engine, the
background, the camera's format) ends here as trouble, reported to the sinks' `Cover`.
Memory bound: one composite, and what matting, background and compositor hold.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rtbg.clock import Cover
from rtbg.composite import Compositor, black_planes
from rtbg.control import Control
from rtbg.frame import Array, Frame
from rtbg.matting import Matting
from rtbg.protocols import Background
from rtbg.stillness import StillGate

_log = logging.getLogger("rtbg")

REOPEN = 3  # consecutive failures after which the engine is opened anew
LONGEST_WAIT = 2.0  # seconds between two tries of an engine that keeps failing
STAGES = ("format", "gate", "matting", "background", "composite")  # whose trouble is told here


class LiveBackground(Background, Protocol):
    """A background that can stand in for the camera: `rtbg.backdrop.Backdrop`."""

    @property
    def steady(self) -> bool:
        """Whether `at` gives the same planes again as long as the camera's picture and `version` are the same."""

    @property
    def version(self) -> int:
        """Changes whenever `at` will give something else for another reason than the frame."""

    def card(self) -> tuple[Array, ...]:
        """Planes as `at` gives them, made without any camera picture. Cheap: called for every picture, and several
        times a second while there is none; the first plane is another object exactly when the card has changed."""


class Swap:
    """Hands a live run another matting between two frames, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Matting | None = None
        self._over = False

    def put(self, matting: Matting) -> None:
        """The run takes it over, its engine too, before the next picture. One that still waits then, and every one
        after the run, is closed."""
        with self._lock:
            unused = matting if self._over else self._waiting
            self._waiting = None if self._over else matting
        if unused is not None:
            unused.engine.close()

    def take(self, *, last: bool = False) -> Matting | None:
        """What was put last and not yet taken. last: the run is over. For the run."""
        with self._lock:
            taken, self._waiting, self._over = self._waiting, None, self._over or last
            return taken


class Composer:
    """Makes each picture's composite, or says why there is none. One thread at a time; `stage` and `since`, what is
    being done and since when, and `opening` are read from outside."""

    def __init__(
        self,
        open_matting: Callable[[], Matting],
        backdrop: LiveBackground,
        compositor: Compositor,
        cover: Cover,
        control: Control,
        swap: Swap,
        reuse: bool,
    ) -> None:
        self._open, self.backdrop, self._compositor = open_matting, backdrop, compositor
        self._cover, self._control, self._swap, self._reuse = cover, control, swap, reuse
        self._matte_view = Compositor(show="matte")
        self._black = black_planes(cover.card)
        self._gate = StillGate()
        self._inside = threading.Lock()  # held while the background is asked
        self._retired = False
        self._matting: Matting | None = None
        self._last: tuple[tuple[object, ...], Frame] | None = None  # what it was made with, and the composite
        self._failures = 0  # in a row
        self.device = ""
        self.reused = self.late = self.failed = 0  # pictures: sent again, too old when finished, not finished at all
        self.stages = {"gate": 0.0, "matting": 0.0, "background": 0.0, "composite": 0.0}
        self.stage = ""  # what is being done, and since when; empty: nothing
        self.since = 0.0
        self.opening = 0.0  # since when the matting is being opened; 0: it is not

    def open(self) -> None:
        """Opens the matting. Raises what the factory raises."""
        self.opening = time.perf_counter()
        try:
            self._matting = self._open()
        finally:
            self.opening = 0.0
        self.device = self._matting.engine.device

    def frame(self, frame: Frame) -> list[Frame]:
        """The composites that this picture finished, those that may leave. What goes wrong is reported as trouble;
        the caller then waits for `pause` seconds."""
        if self._control.frozen:
            self._forget()
            self._cover.clear(*STAGES)  # nothing is asked of them
            return []
        try:
            done = self._composites(frame)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # whatever it is: no composite. Some extensions raise beside Exception.
            self._failed(exc)
            return []
        finally:
            self.stage = ""
        self._failures = 0
        if self._matting is not None:
            self.device = self._matting.engine.device  # another one may have taken over inside it
        ages = [time.perf_counter() - f.captured for f in done]
        if done and max(ages) > self._cover.patience:
            self.late += len(done)
            self._forget()
            late = f"{max(ages):.1f} s late, too old to be shown"
            self._cover.report("matting", f"pictures are finished {late}: use --model fast or a smaller --size")
            return []
        self._cover.clear(*STAGES)
        return done

    @property
    def pause(self) -> float:
        """Seconds to wait before the next picture: more from failure to failure, none after the first."""
        return min(0.05 * 2**self._failures, LONGEST_WAIT) if self._failures > 1 else 0.0

    def idle(self) -> None:
        """No picture is here: the card still follows the background."""
        try:
            self._cover.take_card(self.backdrop.card())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # the card before stays
            self._cover.report("background", reason(exc))

    def close(self) -> None:
        """Closes engine and background. Never raises. For the thread that calls `frame`, or when it is gone."""
        waiting = self._swap.take(last=True)
        for thing in (self._matting and self._matting.engine, waiting and waiting.engine):
            close_quietly(thing)
        self._matting = None
        self.retire()

    def retire(self) -> None:
        """Closes the background alone, also when a hung engine keeps the thread that calls `frame`."""
        if self._inside.acquire(timeout=1):  # else it is the background that hangs: it cannot be closed
            self._retired = True
            self._inside.release()
            close_quietly(self.backdrop)

    def _composites(self, frame: Frame) -> list[Frame]:
        with self._timed("format"):
            if [p.shape for p in frame.planes] != [p.shape for p in self._black] or frame.bits != 8:
                raise ValueError(f"the camera gave {frame!r}, not {self._black[0].shape[::-1]}")
        self._replace()
        if self._matting is None:
            self.open()
            assert self._matting is not None
        backdrop, matte = self.backdrop, self._control.matte
        with self._timed("background"):
            self._cover.take_card(backdrop.card())
            made_with = matte, backdrop.version
            steady = matte or backdrop.steady
        still = False
        if self._reuse and steady:
            with self._timed("gate"):
                still = self._gate.still(frame)
        if still and self._last is not None and self._last[0] == made_with:
            self.reused += 1
            return [frame.with_planes(self._last[1].planes)]
        with self._timed("matting"):
            pairs = self._matting.push(frame)
        done = [self._composite(f, alpha, matte) for f, alpha in pairs]
        if self._reuse and steady and len(pairs) == 1 and pairs[0][0].pts == frame.pts:
            self._gate.inferred()
            self._last = made_with, done[0]
        else:
            self._forget()
        return done

    def _composite(self, frame: Frame, alpha: Array, matte: bool) -> Frame:
        if matte:
            with self._timed("composite"):
                return self._matte_view(frame, alpha, None)
        with self._timed("background"), self._inside:
            if self._retired:
                raise RuntimeError("the run is over")
            planes = self.backdrop.at(frame, alpha) or self._black
        with self._timed("composite"):
            return self._compositor(frame, alpha, planes)

    def _replace(self) -> None:
        """Takes what was swapped in."""
        new = self._swap.take()
        if new is not None:
            old, self._matting, self.device = self._matting, new, new.engine.device
            self._forget()
            close_quietly(old and old.engine)

    def _failed(self, exc: BaseException) -> None:
        stage = self.stage or "matting"
        self._forget()
        self._cover.report(stage, reason(exc))
        _log.info("live: %s: %s", stage, reason(exc), exc_info=exc)
        self._failures += 1
        self.failed += 1
        try:
            if stage == "matting" and self._matting is not None:
                if self._failures % REOPEN:
                    self._matting.reset()
                else:
                    old, self._matting = self._matting, None
                    close_quietly(old.engine)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as again:  # not even that: it is opened anew
            _log.info("live: resetting the matting failed: %s", reason(again))
            close_quietly(self._matting and self._matting.engine)
            self._matting = None

    def _forget(self) -> None:
        self._last = None
        self._gate.forget()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Adds the time of its body to the stage's sum; where it raises, `stage` stays."""
        self.since = time.perf_counter()
        self.stage = stage
        began = time.perf_counter()
        yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - began
        self.stage = ""


def reason(exc: BaseException) -> str:
    """One line."""
    return " ".join(str(exc).split()) or type(exc).__name__


def close_quietly(thing: object) -> None:
    """Closes an engine or a background that is no longer needed; what goes wrong is only told."""
    if thing is None:
        return
    try:
        thing.close()  # type: ignore[attr-defined]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:
        _log.warning("%s could not be closed: %s", type(thing).__name__, reason(exc))
