"""Where pictures come from: one file per kind of source; `open_source` chooses among those that read a file."""

from __future__ import annotations

from pathlib import Path

from rtbg.protocols import Source
from rtbg.sources.probe import head, is_still
from rtbg.sources.still import StillSource
from rtbg.sources.video import VideoSource

__all__ = ["open_source"]


def open_source(path: str | Path, *, start: float = 0.0, duration: float | None = None) -> Source:
    """Opens a video or picture file, whichever its content says it is (an animated GIF or PNG is a video).

    start, duration: the part to read, in seconds from the first picture of a video; a picture has no time and
    is given whatever they are. Raises InputError, one line that names the file: missing, a folder, empty, not
    allowed, not a video or picture, sound only, damaged from the start, `start` beyond the end."""
    path = Path(path)
    if is_still(path, head(path)):
        return StillSource(path)
    return VideoSource(path, start=start, duration=duration)
