"""What is left of a live recording when writing it failed (a full disk) or its process was killed. Used by `VideoSink`.

It is written so that every second of it stands by itself: Matroska in clusters, .mp4 and .mov in fragments, which the
trailer hides behind one ordinary index (FFmpeg's `hybrid_fragmented`). Memory: the head of a file, and one picture.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import av

# A second to each part, written at once. Without `empty_moov` nothing would be written before every track has come,
# and a microphone may be silent for good; edit lists are for the index at the end.
MATROSKA = {"cluster_time_limit": "1000", "flush_packets": "1"}
FRAGMENTS = {
    "movflags": "+hybrid_fragmented+empty_moov",
    "frag_duration": "1000000",
    "use_editlist": "1",
    "flush_packets": "1",
}
_HEAD = 4096  # bytes; the trailer hides the fragments by writing over some sixteen of them


@contextlib.contextmanager
def shown_again(path: Path) -> Iterator[None]:
    """Around the writing of the trailer of an .mp4 in fragments: where it fails, they are shown again, and what is
    behind the last whole one is cut off. Raises what the body raises."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError), path.open("r+b") as file:
            file.write(head)
            file.truncate(_whole(file))
        raise


def _whole(file: IO[bytes]) -> int:
    """Where the last fragment ends that is all there: bytes from the beginning."""
    size = file.seek(0, os.SEEK_END)
    at = end = 0
    while at + 16 <= size:
        file.seek(at)
        box = file.read(16)
        length, kind = int.from_bytes(box[:4]), box[4:8]
        length = int.from_bytes(box[8:]) if length == 1 else length
        at += length
        if length < 8 or at > size:
            break
        if kind in (b"moov", b"mdat"):
            end = at
    return end


def plays(path: Path) -> bool:
    """Whether a picture can be had of it."""
    with contextlib.suppress(av.FFmpegError, OSError), av.open(f"file:{path}", metadata_errors="replace") as container:
        return bool(container.streams.video) and next(container.decode(video=0), None) is not None
    return False
