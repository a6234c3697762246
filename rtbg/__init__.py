"""rtbg replaces the background of a video or a picture of people.

    import rtbg
    alpha = rtbg.matte(rgb)                                              # float32 (H, W) in 0..1
    rtbg.replace_background("in.mp4", "out.mp4", background="beach.jpg")

Importing it is cheap: what the names below need is imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rtbg.errors import RtbgError
from rtbg.version import __version__

if TYPE_CHECKING:
    from rtbg.api import matte, replace_background
    from rtbg.frame import Color, Frame, StreamInfo
    from rtbg.matting import Matting
    from rtbg.options import Options
    from rtbg.pipeline import run
    from rtbg.protocols import Background, Sink, Source
    from rtbg.stats import Stats, Stop

__all__ = [
    "Background",
    "Color",
    "Frame",
    "Matting",
    "Options",
    "RtbgError",
    "Sink",
    "Source",
    "Stats",
    "Stop",
    "StreamInfo",
    "__version__",
    "matte",
    "replace_background",
    "run",
]

_HOME = {
    "matte": "rtbg.api",
    "replace_background": "rtbg.api",
    "Color": "rtbg.frame",
    "Frame": "rtbg.frame",
    "StreamInfo": "rtbg.frame",
    "Matting": "rtbg.matting",
    "Options": "rtbg.options",
    "Stats": "rtbg.stats",
    "Stop": "rtbg.stats",
    "run": "rtbg.pipeline",
    "Background": "rtbg.protocols",
    "Sink": "rtbg.protocols",
    "Source": "rtbg.protocols",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rtbg' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
