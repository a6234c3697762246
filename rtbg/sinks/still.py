"""One picture into a PNG, JPEG or WebP file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from rtbg.color import planes_to_rgb
from rtbg.errors import Aborted, OutputError, UsageError
from rtbg.frame import Array, Frame, StreamInfo
from rtbg.progress import quiet_opencv
from rtbg.sinks.replace import Replacement, writing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_QUALITY = 95


class StillSink:
    """Writes one frame, 8 bits, as a viewer sees it: square pixels, turned upright (these files cannot say so).

    alpha: the frame's fourth plane is kept (not in JPEG), and so are the colours under transparent pixels; WebP
    is then lossless. Raises UsageError for what such a file cannot hold and OutputError for a target that cannot
    be written or exists without `overwrite`.
    """

    def __init__(self, path: Path, info: StreamInfo, *, alpha: bool = False, overwrite: bool = False) -> None:
        suffix = path.suffix.lower()
        if not info.still and info.frames != 1:
            raise UsageError(f"{path.name} holds one picture, the input is a video: name an .mp4")
        if alpha and suffix in (".jpg", ".jpeg"):
            raise UsageError(f"{suffix} holds no transparency: use .png or .webp")
        self.description = suffix[1:].replace("jpg", "jpeg") + (" with transparency" if alpha else "")
        self._info, self._alpha, self._suffix = info, alpha, suffix
        self._wrote = self._closed = self._cancelled = False
        self._replacement = Replacement(path, overwrite=overwrite, source=info.path)

    def write(self, frame: Frame) -> None:
        """Encodes and writes the picture. Raises OutputError for a second one."""
        if self._wrote:
            raise OutputError(f"{self._replacement.path.name} holds one picture, and a second one came: name an .mp4")
        pixels = self._upright(self._pixels(frame))
        with writing(self._replacement.path):
            try:
                with quiet_opencv():
                    ok, data = cv2.imencode(self._suffix, pixels, self._options())
            except cv2.error as exc:
                raise OutputError(f"cannot encode {self._replacement.path.name}: {exc.err}") from exc
            if not ok:
                size = f"{frame.width}x{frame.height}"
                raise OutputError(f"cannot encode {self._replacement.path.name}: {size} is too large for it: use .png")
            self._replacement.temp.write_bytes(data.tobytes())
        self._wrote = True

    def _pixels(self, frame: Frame) -> Array:
        """uint8 BGR or BGRA, as OpenCV has it."""
        rgb = planes_to_rgb(frame.planes, frame.color)
        if not self._alpha:
            return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        bgra = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA))
        if len(frame.planes) == 4:
            alpha = frame.planes[3]
            bgra[:, :, 3] = alpha if alpha.dtype == np.uint8 else alpha >> 2
        return bgra

    def _upright(self, pixels: Array) -> Array:
        turns = self._info.rotation // 90 % 4
        aspect = self._info.sample_aspect
        if aspect > 0 and aspect != 1:
            h, w = pixels.shape[:2]
            size = (max(1, round(w * aspect)), h) if aspect > 1 else (w, max(1, round(h / aspect)))
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC))
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels

    def _options(self) -> list[int]:
        if self._suffix == ".webp" and self._alpha:
            return [cv2.IMWRITE_WEBP_LOSSLESS_MODE, cv2.IMWRITE_WEBP_LOSSLESS_PRESERVE_COLOR]
        if self._suffix == ".webp":
            return [cv2.IMWRITE_WEBP_QUALITY, _QUALITY]
        return [] if self._suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]

    def close(self, *, interrupted: bool = False) -> Path | None:
        """Gives the file its name and returns it. Raises OutputError where no picture came, Aborted after `cancel`."""
        if self._closed:
            return None
        self._closed = True
        if not self._wrote:
            self._replacement.discard()
            raise OutputError(f"{self._replacement.path.name} was not written: no picture came")
        if self._cancelled:
            self._replacement.discard()
            raise Aborted(f"{self._replacement.path.name} was given up")
        # A still is whole once it is written, whatever stopped the run.
        return self._replacement.commit()

    def cancel(self) -> None:
        """`close` raises Aborted from now on. From any thread."""
        self._cancelled = True

    def abort(self) -> None:
        """Leaves nothing behind; an older output stays. Never raises."""
        self._closed = True
        self._replacement.discard()
