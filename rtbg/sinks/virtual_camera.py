"""The virtual camera: a sink for live pictures that video calls show as a webcam named "rtbg".

pyvirtualcam writes: to v4l2loopback on Linux, to OBS's virtual camera on Windows and macOS. Used by `rtbg.live` and
by the doctor. Memory: one packed picture.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from rtbg import loopback
from rtbg.cameras import OBS
from rtbg.errors import MissingDependency, OutputError, UsageError
from rtbg.frame import Array, Frame

_log = logging.getLogger("rtbg")
# Seconds between two looks at whether the device is still there and still has our format.
_LOOK = 1.0
_OBS = {
    "win32": "install OBS Studio (obsproject.com), start it once, press Start Virtual Camera, and close it",
    "darwin": "install OBS Studio (obsproject.com), start it once, press Start Virtual Camera, allow its extension in "
    "System Settings, and close it",
}


class Packed:
    """One I420 picture in a row, as virtual cameras take it: all of Y, of U, of V. Owned and overwritten."""

    def __init__(self, width: int, height: int) -> None:
        luma, chroma = width * height, width * height // 4
        self.data = np.zeros(luma + 2 * chroma, np.uint8)
        y, u, v = np.split(self.data, [luma, luma + chroma])
        half = (height // 2, width // 2)
        self._planes = (y.reshape(height, width), u.reshape(half), v.reshape(half))

    def fill(self, planes: tuple[Array, ...]) -> Array:
        """The planes, whose rows may be strided, in a row; valid until the next call."""
        for own, plane in zip(self._planes, planes, strict=True):
            np.copyto(own, plane)
        return self.data


class VirtualCamera:
    """Shows frames of one size, 8-bit I420, at once; it has no clock.

    size: width and height, even. rate: pictures a second, a hint for the programs that read.
    device: on Linux a path, a number or part of a name (None: the loopback named `label`, else one that nobody writes
    to), elsewhere the camera's name. avoid: the webcam's own path, never written to.
    name, path: the device as video calls list it, and its path (elsewhere than on Linux: again its name).
    Raises UsageError for a size that cannot be, MissingDependency without pyvirtualcam, and OutputError, one line with
    what to type, where there is no device that can be written.
    """

    def __init__(
        self,
        size: tuple[int, int],
        rate: float | Fraction,
        *,
        device: str | None = None,
        label: str = "rtbg",
        avoid: str | None = None,
    ) -> None:
        self._size = width, height = size
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise UsageError(f"a virtual camera's width and height are even, not {width}x{height}")
        if not rate > 0:
            raise UsageError(f"a virtual camera's rate is more than 0 pictures a second, not {rate}")
        self._packed = Packed(width, height)
        self._camera: Any = None
        self._claim: loopback.Claim | None = None
        self._looked = time.monotonic()
        try:
            if sys.platform == "linux":
                self._open_loopback(float(rate), device, label, avoid)
            else:
                self._open_obs(float(rate), device)
        except BaseException:
            self.abort()
            raise

    def _open_loopback(self, rate: float, device: str | None, label: str, avoid: str | None) -> None:
        module = _pyvirtualcam()
        found = loopback.choose(device, label=label, avoid=avoid)
        self.name, self.path = found.name, found.path
        if loopback.hidden(found):
            _log.warning("%s was loaded without exclusive_caps=1: browsers will not list it", found.path)
        self._claim = loopback.Claim(self.path)
        try:
            self._camera = module.Camera(
                *self._size, rate, fmt=module.PixelFormat.I420, device=self.path, backend="v4l2loopback"
            )
            self._claim.guard(Fraction(rate).limit_denominator(1001))
        except (RuntimeError, OSError) as exc:
            text = " ".join(str(exc).split())
            if "not a video output" in text or "in use" in text or "busy" in text:
                raise OutputError(
                    f"another program writes to {self.path}: end it, or name another with --vcam"
                ) from exc
            if "permission" in text:
                raise loopback.refusal(self.path, errno.EACCES) from exc
            raise OutputError(f"{self.path} cannot be opened as a virtual camera: {text}") from exc
        self._check_format()

    def _open_obs(self, rate: float, device: str | None) -> None:
        if sys.platform not in _OBS:
            raise OutputError("this system has no virtual camera: Linux, Windows and macOS have; -o writes a file")
        module = _pyvirtualcam()
        try:
            self._camera = module.Camera(*self._size, rate, fmt=module.PixelFormat.I420, device=device, backend="obs")
        except RuntimeError as exc:
            text = " ".join(str(exc).split())
            if "supports only" in text:
                raise OutputError(f'there is no virtual camera {device!r}: leave out --vcam for "{OBS}"') from exc
            if "could not be started" in text:  # on Windows: its memory is there already
                other = "press Stop Virtual Camera in OBS, or end the other program"
                raise OutputError(f"another program writes to {OBS}: {other}") from exc
            raise OutputError(f"no virtual camera: {_OBS[sys.platform]} ({text})") from exc
        self.name = self.path = str(self._camera.device)

    @property
    def description(self) -> str:
        """For people: what is written, and where to."""
        where = self.name if self.name == self.path else f"{self.name} ({self.path})"
        return f"{where}, {self._size[0]}x{self._size[1]} I420"

    def write(self, frame: Frame) -> None:
        """Shows one picture: three planes of 8 bits, 4:2:0, of this camera's size. Raises OutputError, also where the
        device is gone or was given another format."""
        if self._camera is None:
            raise OutputError("the virtual camera is closed")
        if len(frame.planes) != 3 or frame.bits != 8 or frame.chroma != (2, 2):
            raise OutputError(f"a virtual camera shows 8-bit 4:2:0 without transparency, not {frame!r}")
        if (frame.width, frame.height) != self._size:
            told = f"{self._size[0]}x{self._size[1]}"
            raise OutputError(f"{self.path}: a picture of {frame.width}x{frame.height} came into {told}")
        now = time.monotonic()
        if now - self._looked >= _LOOK:  # pyvirtualcam only prints to stderr when a write fails
            self._looked = now
            self._check()
        try:
            self._camera.send(self._packed.fill(frame.planes))
        except (RuntimeError, OSError) as exc:
            raise OutputError(f"{self.path} takes no more pictures: {' '.join(str(exc).split())}") from exc

    def _check(self) -> None:
        if self._claim is not None:
            if not self._claim.is_there():
                raise loopback.refusal(self.path, errno.ENODEV)
            self._check_format()

    def _check_format(self) -> None:
        """Holds what the device really gives against what we write: a reader that stayed pins the old format."""
        assert self._claim is not None
        try:
            real = self._claim.format()
        except OSError as exc:
            raise loopback.refusal(self.path, exc.errno or errno.EIO) from exc
        if real is None:
            return
        told = f"{self._size[0]}x{self._size[1]}"
        if (real.width, real.height, real.fourcc) == (*self._size, "YU12"):
            return
        readers = loopback.holders(self.path)
        who = (
            f" by a program that reads it ({'; '.join(map(str, readers))})"
            if readers
            else " by a program that reads it"
        )
        other = "" if real.fourcc != "YU12" else f", or use --size {real.width}x{real.height}"
        raise OutputError(
            f"{self.path} is held at {real.width}x{real.height} {real.fourcc}{who}, not {told}: end that program{other}"
        )

    def close(self, *, interrupted: bool = False) -> Path | None:
        """Ends the camera. Raises OutputError; a second call does nothing."""
        camera, self._camera = self._camera, None
        claim, self._claim = self._claim, None
        try:
            if camera is not None:
                camera.close()
        except RuntimeError as exc:
            raise OutputError(f"{self.path} did not close: {' '.join(str(exc).split())}") from exc
        finally:
            if claim is not None:  # its guard goes after the camera, see `rtbg.loopback`
                claim.close()
        return None

    def cancel(self) -> None:
        """Nothing to do: `close` is quick."""

    def abort(self) -> None:
        """Ends the camera. Never raises."""
        with contextlib.suppress(OutputError, OSError):
            self.close(interrupted=True)


def _pyvirtualcam() -> Any:
    try:
        import pyvirtualcam
    except ImportError as exc:
        raise MissingDependency("the virtual camera needs pyvirtualcam: pip install pyvirtualcam") from exc
    return pyvirtualcam
