"""An animated portrait, to try rtbg with nothing at hand: `rtbg --demo`.

The picture is scikit-image's `astronaut`, a public-domain portrait of Eileen Collins by NASA (extra `[demo]`).
Memory: the portrait's planes, under 1 MB, and one frame at a time.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from rtbg.color import rgb_to_planes
from rtbg.errors import MissingDependency
from rtbg.frame import BT709, LIMITED, Array, Color, Frame, StreamInfo

_COLOR = Color(BT709, LIMITED, 1, 1)
_TILT = math.radians(1.1)


class DemoSource:
    """A person before a wall, as a webcam would have her, under a camera that drifts, sways and breathes.

    size: (width, height) of the pictures; any. start, seconds, rate: from when on, how long, and pictures a second.
    period: seconds after which the movement repeats; with whole periods the last picture leads back to the first.
    Deterministic. Frames are 4:2:0 of 8 bits, BT.709, limited range, with
    a time_base of 1/rate and pts 0, 1, 2...; info.path is None. Raises MissingDependency without scikit-image."""

    live = False
    SECONDS = 8.0  # of the film, and of one period of its movement

    def __init__(
        self,
        *,
        size: tuple[int, int] = (1280, 720),
        start: float = 0.0,
        seconds: float = SECONDS,
        rate: int | Fraction = 30,
        period: float = SECONDS,
    ) -> None:
        self._size, self._frames, self._next = size, max(1, round(seconds * rate)), 0
        self._first, self._period = round(start * rate), period * float(rate)
        rgb = _portrait()
        self._side = min(rgb.shape[:2])
        planes = rgb_to_planes(rgb[: self._side, : self._side], _COLOR, height=size[1], bits=8, chroma=(1, 1))
        # Where the output is smaller than the portrait, reduced first: warping does not average.
        reach = max(size)
        self._planes = [_at_most(plane, reach if k == 0 else -(-reach // 2)) for k, plane in enumerate(planes)]
        self.info = StreamInfo(
            *size,
            time_base=1 / Fraction(rate),
            rate=Fraction(rate),
            color=_COLOR,
            frames=self._frames,
            duration=float(self._frames / Fraction(rate)),
        )

    def read(self) -> Frame | None:
        """The next picture, None at the end."""
        if self._next >= self._frames:
            return None
        pts, self._next = self._next, self._next + 1
        view = self._view(pts)
        planes = tuple(self._warp(plane, view, subsampled=k > 0) for k, plane in enumerate(self._planes))
        return Frame(planes, pts, self.info.time_base, _COLOR)

    def close(self) -> None:
        """Ends the stream."""
        self._next = self._frames

    def _view(self, k: int) -> Array:
        """float64 (2, 3): what takes luma positions of picture k (pixel edges: 0..width, 0..height) to positions
        in the portrait (0..1 both ways). All of the picture lies within the portrait."""
        width, height = self._size
        t = 2 * math.pi * (self._first + k) / self._period
        zoom = 1.10 - 0.045 * math.cos(t)
        angle = _TILT * math.sin(t + 0.6)
        reach = max(width, height) * zoom
        w, h = width / reach, height / reach  # of the window, in portraits
        cos, sin = math.cos(angle), math.sin(angle)
        half_x, half_y = (w * cos + h * abs(sin)) / 2, (w * abs(sin) + h * cos) / 2
        # The head is left of the middle, near the top: the window keeps to there, within its room.
        x = half_x + (1 - 2 * half_x) * (0.36 + 0.30 * math.sin(t))
        y = half_y + (1 - 2 * half_y) * (0.012 + 0.010 * math.sin(2 * t + 1))
        turn = np.array([[cos, -sin], [sin, cos]]) / reach
        return np.column_stack((turn, np.array([x, y]) - turn @ (width / 2, height / 2)))

    def _warp(self, plane: Array, view: Array, *, subsampled: bool) -> Array:
        """The plane as seen through `view`; subsampled: on the 4:2:0 grid, left-sited."""
        width, height = self._size
        # Sample (x, y) of luma covers (x + 0.5, y + 0.5); of chroma, (2 x + 0.5, 2 y + 1).
        grid = np.array([[2, 0, 0.5], [0, 2, 1.0]]) if subsampled else np.array([[1, 0, 0.5], [0, 1, 0.5]])
        size = (-(-width // 2), -(-height // 2)) if subsampled else (width, height)
        m = view[:, :2] @ grid * plane.shape[0]
        m[:, 2] += view[:, 2] * plane.shape[0] - 0.5
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(plane, m, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))


def _portrait() -> Array:
    """uint8 (512, 512, 3) RGB. Read from scikit-image's folder: importing it takes a second."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise MissingDependency("the demo needs a portrait: pip install 'rtbg[demo]'")
    file = Path(found.origin).parent / "data" / "astronaut.png"
    if file.is_file():
        rgb = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR_RGB)
        if rgb is not None:
            return np.asarray(rgb)
    try:
        data = importlib.import_module("skimage.data")

        return np.asarray(data.astronaut())
    except Exception as exc:  # its own loader: a missing downloader, no network, a moved name
        raise MissingDependency("the demo needs a portrait: pip install 'rtbg[demo]'") from exc


def _at_most(plane: Array, side: int) -> Array:
    """A square plane, reduced to `side` where it is larger."""
    if plane.shape[0] <= side:
        return plane
    return np.asarray(cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA))
