"""The picture as it travels from source to sink: planes of YUV, its time and its colour tags.

Everything in rtbg takes and gives `Frame`; nobody converts a full frame to RGB on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Values of FFmpeg's enumerations (ITU-T H.273), as PyAV gives and takes them.
UNSPECIFIED = 2
BT709, BT470BG, SMPTE170M, BT2020_NCL = 1, 5, 6, 9
RANGE_UNSPECIFIED, LIMITED, FULL = 0, 1, 2
PQ, HLG = 16, 18  # transfers of HDR


@dataclass(frozen=True, slots=True)
class Color:
    """Colour tags with FFmpeg's (H.273) numbers; the defaults mean "not tagged".

    They travel to the encoder untouched; `rtbg.color` decides what an untagged picture is taken for."""

    matrix: int = UNSPECIFIED
    range: int = RANGE_UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED


@dataclass(frozen=True, slots=True, repr=False)
class Frame:
    """One picture.

    planes: Y (H, W); U and V, (ceil(H/2), ceil(W/2)) for 4:2:0, (H, ceil(W/2)) for 4:2:2, (H, W) for 4:4:4;
        a fourth, alpha (H, W), full range, where the picture is transparent. uint8, or uint16 holding 10 bits.
        Rows may be strided, their samples not. Never written to once the frame has been handed on.
    pts: presentation time in units of time_base.
    captured: time.perf_counter() seconds when the picture was taken, of a live one only. On Windows time.monotonic()
        goes in steps of 16 ms before Python 3.13; on Linux and macOS both are one clock.
    moves: of a file whose times start again on the way (files glued together): how many units of time_base later than
        there all is that follows each such place, for those that this picture lies behind; pts has the last one in it.
    """

    planes: tuple[Array, ...]
    pts: int
    time_base: Fraction
    color: Color = Color()
    captured: float = 0.0
    moves: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.planes) not in (3, 4) or self.planes[0].dtype not in (np.uint8, np.uint16):
            raise ValueError(f"a frame has 3 or 4 planes of uint8 or uint16, not {self!r}")
        if len(self.planes) == 4 and self.planes[3].shape != self.planes[0].shape:
            raise ValueError(f"the alpha plane has the size of the luma plane, not {self!r}")

    def __repr__(self) -> str:
        shapes = ", ".join("x".join(map(str, p.shape)) for p in self.planes)
        return f"Frame({shapes} {self.planes[0].dtype}, pts={self.pts}, time_base={self.time_base})"

    @property
    def width(self) -> int:
        """Pixels in a row of the luma plane."""
        return int(self.planes[0].shape[1])

    @property
    def height(self) -> int:
        """Rows of the luma plane."""
        return int(self.planes[0].shape[0])

    @property
    def bits(self) -> int:
        """Bits of a sample: 8 or 10."""
        return 8 if self.planes[0].dtype == np.uint8 else 10

    @property
    def chroma(self) -> tuple[int, int]:
        """Horizontal and vertical subsampling: (2, 2) for 4:2:0, (2, 1) for 4:2:2, (1, 1) for 4:4:4."""
        h, w = self.planes[1].shape
        return (1 if w == self.width else 2, 1 if h == self.height else 2)

    @property
    def seconds(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)

    def with_planes(self, planes: tuple[Array, ...]) -> Frame:
        """The same moment and tags with other planes."""
        return replace(self, planes=planes)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a source knows of its pictures before it has read one. All sizes are as stored, before rotation.

    rate: pictures a second on average (exact where the container says so), for encoders and progress.
    frames, duration: how many pictures and seconds will come, None where not known.
    rotation: degrees counter-clockwise by which a player turns the stored picture (0, 90, 180, 270).
    sample_aspect: width of a pixel over its height.
    rgb: the pictures were stored as RGB, so their 4:4:4 chroma is of our own choosing.
    path: the file behind the source, for the sink that copies its sound; start and limit are the part of
        it in seconds that is read (limit None: to the end).
    """

    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    color: Color = Color()
    bits: int = 8
    chroma: tuple[int, int] = (2, 2)
    frames: int | None = None
    duration: float | None = None
    rotation: int = 0
    sample_aspect: Fraction = Fraction(1)
    still: bool = False
    rgb: bool = False
    path: Path | None = None
    start: float = 0.0
    limit: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) as a viewer sees the picture: square pixels, turned upright."""
        w, h = self.width, self.height
        if self.sample_aspect > 1:
            w = max(1, round(w * self.sample_aspect))
        elif self.sample_aspect < 1:
            h = max(1, round(h / self.sample_aspect))
        return (h, w) if self.rotation in (90, 270) else (w, h)
