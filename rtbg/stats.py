"""A run as seen from outside: what ends it, and what it did. Imports nothing heavy."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path


class Stop:
    """Ends a run from outside, from any thread or a signal handler."""

    def __init__(self) -> None:
        self.ended = self.aborted = False

    def end(self) -> None:
        """End of stream now: what has been read is finished and written."""
        self.ended = True

    def abort(self) -> None:
        """Give up now: outputs are dropped, `run` raises Aborted."""
        self.ended = self.aborted = True


class Latency:
    """Seconds from capture to send: a histogram of tenths of a millisecond up to ten seconds. One writer thread."""

    STEP, TOP = 1e-4, 100_000

    def __init__(self) -> None:
        self._counts = array("L", bytes(array("L").itemsize * (self.TOP + 1)))
        self.count = 0

    def add(self, seconds: float) -> None:
        """Takes one in."""
        self._counts[min(self.TOP, max(0, round(seconds / self.STEP)))] += 1
        self.count += 1

    def quantile(self, share: float) -> float:
        """The time within which that share of all pictures left; 0 where there are none."""
        wanted, seen = share * self.count, 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return index * self.STEP
        return 0.0


@dataclass(slots=True)
class Stats:
    """What a run did. Times are wall-clock seconds of each stage's own thread, waiting excluded."""

    engine: str = ""
    frames_in: int = 0
    frames_out: int = 0
    dropped: int = 0
    seconds: float = 0.0
    share: float | None = None  # of the source's bytes that have been read, where it knows
    interrupted: bool = False
    stages: dict[str, float] = field(default_factory=dict)
    outputs: list[Path] = field(default_factory=list)  # the files that are whole
    # Live runs only:
    cpu_seconds: float = 0.0  # of the whole process, all threads, while the run went on
    latency: Latency | None = None
    reused: int = 0  # pictures for which the composite before was sent again, since nothing had changed
    filled: int = 0  # pictures that a sink's clock put into a gap: the last one again, or the card
    covered: int = 0  # of those, the ones that hid the camera: the card, black, or a frozen picture
    trouble: str = ""  # what is wrong right now, one line; empty: nothing
    lost: list[str] = field(default_factory=list)  # outputs that failed while the run went on: one line each

    @property
    def fps(self) -> float:
        """Frames a second over the whole run so far."""
        return self.frames_out / self.seconds if self.seconds else 0.0
