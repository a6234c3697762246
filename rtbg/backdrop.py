"""The backgrounds of a live run: several that the user steps through, each read again when its file changes.

Used by `rtbg.live`. All are opened at the start, so that stepping costs nothing; a file is read again on a thread of
its own ("rtbg-backdrop") and takes the old one's place between two pictures. A video moves on only while it is shown,
so that coming back to it never has to catch up.
Memory bound: what each opened background holds, and one card (a set of planes) for each.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from rtbg.backgrounds import BackgroundSpec, open_background, parse_background
from rtbg.color import solid
from rtbg.control import Control
from rtbg.errors import BackgroundError, UsageError
from rtbg.frame import Array, Frame, StreamInfo
from rtbg.progress import say as say_on_stderr
from rtbg.protocols import Background

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at the files
SETTLE = 0.25  # seconds for which a file must not have changed to be read; and within which a wish is seen
LEAVE = 1.0  # seconds that a reading under way has to come back when it is no longer wanted
LEAP = Fraction(1, 4)  # seconds: the most by which a video moves on between two pictures, so that it never catches up
GREY = (128, 128, 128)

Stamp = tuple[int, int, int]


def refuse_transparent(specs: Sequence[str | BackgroundSpec]) -> None:
    """Raises UsageError for a background that a virtual camera cannot carry: its pictures have no alpha, and black or
    the room itself would be a surprise. Raises BackgroundError for one that is not understood."""
    for spec in specs:
        if (parse_background(spec) if isinstance(spec, str) else spec).kind == "transparent":
            raise UsageError(
                "a virtual camera cannot be transparent: use --bg green, and a chroma key where it is received"
            )


@dataclass(frozen=True, slots=True)
class _Opened:
    """One opened background: what can be told of it before there is a camera picture."""

    background: Background
    card: tuple[Array, ...]
    steady: bool
    moves: bool  # has a clock of its own


class _Slot:
    """One of the user's backgrounds. `opened` is replaced as a whole, under the backdrop's lock."""

    def __init__(self, asked: str | BackgroundSpec, spec: BackgroundSpec, opened: _Opened) -> None:
        self.opened = opened
        self.clock = Fraction(0)  # seconds that a video has been shown
        self.path = spec.path
        self.name = spec.path.name if spec.path else asked if isinstance(asked, str) else spec.name or spec.kind
        self.stamp = _stamp(spec.path)  # of the file as it was opened, or last refused
        self.seen = self.stamp  # at the last look: a file is read only once it stopped changing
        self.due = False  # the user asked for it to be read again


class Backdrop:
    """A `Background` made of one or more. `at` belongs to one thread; all else may be read from any."""

    def __init__(
        self,
        specs: Sequence[str | BackgroundSpec],
        info: StreamInfo,
        *,
        fit: str = "cover",
        control: Control | None = None,
        say: Callable[[str], None] = say_on_stderr,
    ) -> None:
        """Opens all. info: 8-bit 4:2:0, the working format of live mode, in which frames and cards are. control: its
        `steps` choose the background, its `reloads` have the current one's file read again. say: takes the line about
        a file that could not be read again; called on the backdrop's own thread.
        Raises BackgroundError, and UsageError for another `fit` or no background at all."""
        if not specs:
            raise UsageError("name at least one background")
        if info.bits != 8 or info.chroma != (2, 2):
            raise ValueError(f"a backdrop is for 8-bit 4:2:0, not {info}")
        self._info, self._fit, self._say = info, fit, say
        self._control = control or Control(quit=lambda: None)
        self._lock = threading.Lock()  # held while a background is asked, and while one takes another's place
        self._slots: list[_Slot] = []
        self._replaced = 0
        self._reloads = self._control.reloads
        self._last: tuple[int, Fraction] | None = None  # the slot last asked, and the frame's time
        self._closing = threading.Event()
        try:
            for asked in specs:
                spec = parse_background(asked) if isinstance(asked, str) else asked
                self._slots.append(_Slot(asked, spec, self._open(spec)))
        except BaseException:
            self.close()
            raise
        self._thread: threading.Thread | None = None
        if any(slot.path for slot in self._slots):
            self._thread = threading.Thread(target=self._watch, name="rtbg-backdrop", daemon=True)
            self._thread.start()

    @property
    def steady(self) -> bool:
        """Whether the current background gives the same planes as long as the camera's picture stays the same."""
        return self._slots[self._index].opened.steady

    @property
    def version(self) -> int:
        """Grows whenever `at` will give something else than it did for another reason than the frame: a step, or a
        file that was read again."""
        return self._control.steps + self._replaced

    @property
    def name(self) -> str:
        """The current background as the user knows it, short."""
        return self._slots[self._index].name

    @property
    def count(self) -> int:
        """How many there are to step through."""
        return len(self._slots)

    def card(self) -> tuple[Array, ...]:
        """Planes, as `at` gives them, that hide the camera: the current background's first picture, mid grey for blur
        and transparent. Made when the background was opened, without any picture of a camera. Not to be written to."""
        return self._slots[self._index].opened.card

    def at(self, frame: Frame, alpha: Array) -> tuple[Array, ...] | None:
        """See `protocols.Background`: asks the current one."""
        with self._lock:
            index = self._index
            slot = self._slots[index]
            if slot.opened.moves:
                frame = self._own_time(slot, index, frame)
            else:
                self._last = None
            return slot.opened.background.at(frame, alpha)

    def close(self) -> None:
        """Joins the thread and closes every background, within about a second: a file that is being read again and
        does not come (a network drive) is left behind. May be called twice."""
        again = self._closing.is_set()
        self._closing.set()
        thread = getattr(self, "_thread", None)
        if thread is not None and not again:
            thread.join(LEAVE)
            if thread.is_alive():
                log.warning("a background file that is read again does not come: it is left to itself")
        for slot in self._slots:
            slot.opened.background.close()

    @property
    def _index(self) -> int:
        return self._control.steps % len(self._slots)

    def _own_time(self, slot: _Slot, index: int, frame: Frame) -> Frame:
        """The frame at the video's own time, which goes on from where it was when it was last shown."""
        now = frame.pts * frame.time_base
        if self._last is not None and self._last[0] == index:
            slot.clock += min(max(now - self._last[1], Fraction(0)), LEAP)
        self._last = index, now
        return replace(frame, pts=slot.clock.numerator, time_base=Fraction(1, slot.clock.denominator))

    def _open(self, spec: BackgroundSpec) -> _Opened:
        """Raises BackgroundError, UsageError."""
        background = open_background(spec, self._info, fit=self._fit)
        grey = _planes(self._info, GREY)
        try:
            if spec.kind in ("blur", "transparent"):
                card = grey
            else:
                first = Frame(grey, 0, Fraction(1), self._info.color)
                planes = background.at(first, np.zeros(grey[0].shape, np.uint8))
                assert planes is not None
                card = tuple(p.copy() for p in planes)
            moves = spec.kind == "video" and spec.path is not None and _moves(spec.path)
        except BaseException:
            background.close()
            raise
        return _Opened(background, card, steady=not moves, moves=moves)

    # The thread that reads files again.

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._closing.wait(SETTLE):
            if (reloads := self._control.reloads) != self._reloads:
                self._reloads = reloads
                self._slots[self._index].due = True
            if everything := time.monotonic() - looked >= LOOK:
                looked = time.monotonic()
            for slot in self._slots:
                if everything or slot.due or slot.seen not in (None, slot.stamp):
                    self._look(slot)

    def _look(self, slot: _Slot) -> None:
        """Reads a slot's file again where it changed, and has not between the last two looks, or the user asked."""
        if slot.path is None:
            return
        stamp = _stamp(slot.path)
        settled, slot.seen = stamp == slot.seen, stamp
        if not slot.due and (stamp is None or stamp == slot.stamp):
            return  # a file that is gone for a moment is on its way to be replaced
        if not settled:
            return
        slot.due, slot.stamp = False, stamp
        try:
            if stamp is None:
                raise BackgroundError(f"no such background file: {slot.path}")
            fresh = self._open(parse_background(str(slot.path)))
        except Exception as exc:  # whatever a library makes of a damaged file: the others are still looked at
            reason = " ".join(str(exc).split()) or type(exc).__name__
            self._say(f"rtbg: warning: {reason}; the background stays as it was")
            return
        with self._lock:
            if self._closing.is_set():
                fresh.background.close()
                return
            old, slot.opened = slot.opened, fresh
            slot.clock = Fraction(0)
            self._replaced += 1
        # Its planes, which the frame under way may still use, do not go with it: they hold their own memory.
        old.background.close()
        log.info("the background %s was read again", slot.path)


def _planes(info: StreamInfo, rgb: tuple[int, int, int]) -> tuple[Array, ...]:
    """I420 planes of one colour."""
    half = -(-info.height // 2), -(-info.width // 2)
    codes = solid(rgb, info.color, height=info.height, bits=8)
    shapes = ((info.height, info.width), half, half)
    return tuple(np.full(shape, code, np.uint8) for shape, code in zip(shapes, codes, strict=True))


def _stamp(path: Path | None) -> Stamp | None:
    """What changes with a file's content; None where there is none."""
    try:
        stat = os.stat(path) if path else None  # noqa: PTH116
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat else None


def _moves(path: Path) -> bool:
    """Whether a video has more than one picture. What cannot be told is taken to move."""
    import av

    from rtbg.sources.probe import demuxer, head

    try:
        with av.open(f"file:{path}", format=demuxer(path, head(path))) as container:
            return sum(1 for _ in islice(container.decode(video=0), 2)) > 1
    except (av.FFmpegError, OSError):
        return True
