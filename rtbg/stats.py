"""A run as seen from outside: what ends it, and what it did. Imports nothing heavy."""

from __future__ import annotations

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

    @property
    def fps(self) -> float:
        """Frames a second over the whole run so far."""
        return self.frames_out / self.seconds if self.seconds else 0.0
