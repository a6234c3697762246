"""What the parts of the pipeline are to one another. Adding a source, background or sink adds one file."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from rtbg.frame import Array, Frame, StreamInfo


@runtime_checkable
class Source(Protocol):
    """Gives pictures, oldest first. Used by one thread; `close` comes from any, once the reader has stopped.

    A source of a file may also have `share: float`, how much of the file's bytes has been read, for the progress
    bar where the container does not say how long it is."""

    info: StreamInfo
    live: bool  # True: pictures come in real time and late ones are dropped, never queued

    def read(self) -> Frame | None:
        """The next picture, None at the end. A live source gives the newest one, once, and blocks for about a second
        at most: then, or at once where it knows that there is none, it raises NoPicture.
        Raises InputError when nothing at all can be read; a damaged tail ends the stream with a warning."""

    def close(self) -> None:
        """Frees what is held. May be called twice."""


@runtime_checkable
class Background(Protocol):
    """What is put behind the person."""

    def at(self, frame: Frame, alpha: Array) -> tuple[Array, ...] | None:
        """Planes of the background for this very frame: its size, chroma format, bits, matrix and range; kept
        by the background and valid until the next call. None: transparent. `alpha` is uint8 (H, W)."""

    def close(self) -> None:
        """Frees what is held. May be called twice."""


@runtime_checkable
class Sink(Protocol):
    """Takes finished pictures. Used by one thread."""

    def write(self, frame: Frame) -> None:
        """Takes one picture. Raises OutputError."""

    def close(self, *, interrupted: bool = False) -> Path | None:
        """End of stream: writes what is held, makes the output whole (rename), returns where it is (None: not a
        file). Raises OutputError, and Aborted after `cancel`.
        interrupted: the stream was ended early (Ctrl-C); where an older output exists it stays, and what was
        finished goes to NAME.partial.EXT. A call after the first, or after `abort`, does nothing."""

    def cancel(self) -> None:
        """From any thread: a `close` that is under way, or still to come, gives up as if aborted. Never raises."""

    def abort(self) -> None:
        """Frees everything without making the output whole: an older output stays. Never raises."""
