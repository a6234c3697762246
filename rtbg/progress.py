"""The progress bar of a file run, on the terminal only, lines on stderr and texts on stdout, where there is one."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rtbg.errors import OutputError
from rtbg.stats import Stats

if TYPE_CHECKING:
    from rtbg.frame import StreamInfo

_quiet, _levels = threading.Lock(), list[int]()  # of `quiet_opencv`: OpenCV's own level, then one for each in it


def say(line: str) -> None:
    """One line on stderr; nothing happens where that is closed (a service) or broken (a pipe)."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keeps OpenCV from printing about pictures that it cannot read or write, in the body: the error says it."""
    import cv2

    log = cv2.utils.logging  # its level is the whole process's: the last one out puts it back
    with _quiet:
        if not _levels:
            _levels.append(log.setLogLevel(log.LOG_LEVEL_SILENT))
        _levels.append(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        with _quiet:
            _levels.pop()
            if len(_levels) == 1:
                log.setLogLevel(_levels.pop())


def show(text: str) -> None:
    """A text on stdout; nothing happens where that is closed (a service) or broken (a pipe whose reader has enough). A
    "?" for what its encoding has not. Raises OutputError where it cannot be written."""
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"  # on Windows an old code page, where it is a file or a pipe
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except OSError as exc:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())  # what is left in its buffer would fail again when Python ends
        os.close(nothing)
        if not isinstance(exc, BrokenPipeError):
            raise OutputError(f"standard output cannot be written: {exc.strerror}") from exc


def total_frames(info: StreamInfo) -> float | None:
    """Frames to expect: as the container says, else from its length; None where neither is known."""
    if info.frames is not None:
        return float(info.frames)
    return info.duration * float(info.rate) if info.duration else None


@contextmanager
def progress_bar(label: str, info: StreamInfo, *, show: bool) -> Iterator[Callable[[Stats], None] | None]:
    """Gives a callback for `pipeline.run`; None, and no bar, when `show` is false or stderr is no terminal."""
    if not show or sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:.0f} frames  {task.fields[fps]:.0f} fps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    total = total_frames(info)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.console.show_cursor(True)  # a Ctrl-Z, or a signal that kills, would leave the shell without
        task = bar.add_task(label, total=total, fps=0.0)

        def update(stats: Stats) -> None:
            if total is not None:
                known: float | None = max(total, stats.frames_out)
            else:  # by the share of the file that has been read
                known = stats.frames_in / stats.share if stats.share else None
            bar.update(task, completed=stats.frames_out, total=known, fps=stats.fps)

        yield update
