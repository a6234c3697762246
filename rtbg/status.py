"""What a live run says of itself: a status line while it goes on, and the closing lines. All on stderr.

Used by the command line. On a terminal the status line stays at the bottom, with what is wrong below it; elsewhere (a
log, a service) there is a line when something goes wrong and one when it is well again; if verbose, one every ten
seconds too.
Memory bound: none to speak of.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rtbg.control import KEYS, Control
from rtbg.progress import say
from rtbg.stats import Stats

REFRESH = 0.25  # seconds between two states of the line
WINDOW = 1.0  # seconds over which fps and stage times are taken
CALM = 1.0  # seconds between two lines about trouble, so that one that comes and goes does not fill a log
OFTEN = 10.0  # seconds between two lines of a verbose log
_LASTS = re.compile(r"\d[\d.]* s\b")  # how long trouble has lasted, in its text


@contextmanager
def live_status(
    control: Control,
    name: Callable[[], str],
    *,
    show: bool = True,
    verbose: bool = False,
    keys: bool = False,
) -> Iterator[Callable[[Stats], None]]:
    """Gives the `progress` callback of `run_live`, for the thread that calls this.

    name: the current background's, `Backdrop.name`. show: False: only trouble is told. verbose: stage times too; a
    line every ten seconds where there is no terminal. keys: keys are taken, in the terminal or the preview: they are
    named once. A terminal that is closed meanwhile is no error."""
    if not show or not _on_terminal():
        yield _Log(verbose=verbose and show)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        yield _Log(verbose=verbose)
        return
    if keys:
        say("keys: " + ", ".join(f"{key} {meaning}" for key, meaning in KEYS.items()))
    # What others write to stderr meanwhile comes out above the line. It goes at the end: the summary takes its place.
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
    try:
        with suppress(OSError):
            live.start()
            console.show_cursor(True)  # a Ctrl-Z would leave the shell without
        yield _Line(live, control, name, verbose=verbose)
    finally:
        with suppress(OSError):
            live.stop()


def summary(stats: Stats, *, verbose: bool = False) -> str:
    """The closing lines of a live run. verbose: with the time of every stage."""
    minutes, seconds = divmod(round(stats.seconds), 60)
    first = [f"{minutes}:{seconds:02d}", f"{stats.fps:.1f} fps"]
    if stats.latency is not None and stats.latency.count:
        times = (f"p{share} {1000 * stats.latency.quantile(share / 100):.1f}" for share in (50, 95, 99))
        first.append(f"latency {' '.join(times)} ms")
    if stats.seconds:
        first.append(f"CPU {100 * stats.cpu_seconds / stats.seconds:.0f} % of one core")
    second = [
        f"dropped {stats.dropped} of {stats.frames_in} ({_percent(stats.dropped, stats.frames_in)})",
        f"reused {stats.reused} ({_percent(stats.reused, stats.frames_out)})",
        f"filled {stats.filled}",
        f"covered {stats.covered}",
        stats.engine or "no engine ran",
    ]
    lines = [", ".join(first), ", ".join(second)]
    if verbose and stats.frames_out:
        lines.append(_times({stage: 1000 * t / stats.frames_out for stage, t in stats.stages.items()}))
    return "\n".join(lines)


def _times(stages: dict[str, float]) -> str:
    return "ms a frame: " + ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items())


def status_line(stats: Stats, fps: float, control: Control, name: str, width: int) -> str:
    """One line of at most `width` columns; whole from 80 on, but for long names, which lose their middle."""
    parts = [word for word, on in (("FROZEN", control.frozen), ("MATTE", control.matte)) if on]
    parts += _figures(stats, fps)
    room = width - sum(len(p) + 2 for p in parts)
    engine = _shorten(stats.engine, max(room - 2 - len(name), room // 2 - 1))
    parts += [_shorten(name, max(0, room - (len(engine) + 2 if engine else 0))), engine]
    return "  ".join(filter(None, parts))[:width]


def _figures(stats: Stats, fps: float) -> list[str]:
    parts = [f"{fps:.1f} fps" if stats.frames_out else "starting"]
    if stats.latency is not None and stats.latency.count:
        p50, p95 = (1000 * stats.latency.quantile(q) for q in (0.5, 0.95))
        parts.append(f"latency {p50:.0f}/{p95:.0f} ms")
    if stats.frames_out:
        parts.append(f"dropped {stats.dropped} ({_percent(stats.dropped, stats.frames_in)})")
    return parts


class _Rates:
    """Figures of the last WINDOW seconds, from sums over the whole run."""

    def __init__(self) -> None:
        self._at, self._frames = 0.0, 0
        self._sums: dict[str, float] = {}
        self.fps = 0.0
        self.stages: dict[str, float] = {}  # milliseconds a frame

    def update(self, stats: Stats) -> None:
        """Takes the present sums in."""
        passed, frames = stats.seconds - self._at, stats.frames_out - self._frames
        if passed < WINDOW:
            return
        sums = dict(stats.stages)
        self.fps = frames / passed
        self.stages = {s: 1000 * (t - self._sums.get(s, 0.0)) / max(1, frames) for s, t in sums.items()}
        self._at, self._frames, self._sums = stats.seconds, stats.frames_out, sums


class _Line:
    """The status line of a terminal."""

    def __init__(self, live: Any, control: Control, name: Callable[[], str], *, verbose: bool) -> None:
        self._live, self._control, self._name, self._verbose = live, control, name, verbose
        self._rates = _Rates()
        self._due = 0.0

    def __call__(self, stats: Stats) -> None:
        from rich.console import Group
        from rich.text import Text

        self._rates.update(stats)
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + REFRESH
        width = self._live.console.width
        fps = self._rates.fps or stats.fps if stats.seconds < 2 * WINDOW else self._rates.fps
        lines = [Text(status_line(stats, fps, self._control, self._name(), width), no_wrap=True, overflow="crop")]
        if self._verbose and self._rates.stages:
            lines.append(Text(_times(self._rates.stages), style="dim"))
        if stats.trouble:
            lines.append(Text(stats.trouble, style="yellow"))
        with suppress(OSError):  # the terminal was closed
            self._live.update(Group(*lines), refresh=True)


class _Log:
    """Lines about trouble, where there is no terminal. verbose: and about how it goes."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._told = ""
        self._due = 0.0
        self._verbose = verbose
        self._at, self._frames = 0.0, 0  # of the run at the last line about how it goes

    def __call__(self, stats: Stats) -> None:
        now = time.monotonic()
        if self._verbose and stats.seconds - self._at >= OFTEN:
            fps = (stats.frames_out - self._frames) / (stats.seconds - self._at)
            self._at, self._frames = stats.seconds, stats.frames_out
            say("rtbg: " + ", ".join(filter(None, [*_figures(stats, fps), stats.engine])))
        trouble = _LASTS.sub("", stats.trouble)  # told once, however long it lasts
        if trouble == self._told or now < self._due:
            return
        self._told, self._due = trouble, now + CALM
        say(f"rtbg: {stats.trouble}" if stats.trouble else "rtbg: all is well again")


def _on_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.{2 if 0 < share < 1 else 0}f} %"


def _shorten(text: str, width: int) -> str:
    """At most `width` characters; what is left out is in the middle, since names differ at both ends. Nothing, where
    too little of it would be left to know it by."""
    if len(text) <= width:
        return text
    if width < 6:
        return ""
    head = width // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]
