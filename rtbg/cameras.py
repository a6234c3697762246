"""Which cameras there are, which one is meant, and in which of its modes it is asked. Used by the webcam source, the
command line (`--list-cameras`, `--webcam NAME`) and the doctor.

Linux: V4L2 (`rtbg.v4l2`). Windows and macOS: what FFmpeg's DirectShow and AVFoundation inputs name; these do not say
which modes a camera has before it is open. Memory: a few kilobytes.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path

from rtbg import v4l2
from rtbg.errors import InputError, UsageError
from rtbg.frame import BT709, FULL, LIMITED, SMPTE170M, Color

OWN = "rtbg"  # the label of our own virtual camera
OBS = "OBS Virtual Camera"  # which is ours on Windows and macOS
# V4L2's formats that FFmpeg's input takes: its name for each, and the order in which they are preferred where the
# size and rate are the same: the cheaper one first, those that lose something last.
_KNOWN = {
    "YU12": ("yuv420p", 0),
    "NV12": ("nv12", 1),
    "YUYV": ("yuyv422", 2),
    "UYVY": ("uyvy422", 3),
    "422P": ("yuv422p", 4),
    "MJPG": ("mjpeg", 5),
    "JPEG": ("mjpeg", 5),
    "NV21": ("nv21", 6),
    "NV16": ("nv16", 7),
    "BGR3": ("bgr24", 8),
    "RGB3": ("rgb24", 8),
    "GREY": ("gray", 9),
}
_ENOUGH = Fraction(4, 5)  # of the wanted rate: 24 and 25 do for 30
_FFMPEG = 4096  # errnos from here on are FFmpeg's own
_API = {"win32": "dshow", "darwin": "avfoundation"}
_SOFTWARE = "@device_sw_"  # how DirectShow's names begin of what is no hardware
_SCREEN = re.compile(r"Capture screen \d+")  # AVFoundation's input lists the screens among the cameras
_LISTED = re.compile(r'^"(.*)" \((.*)\)\n +Alternative name "(.*)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera. api: FFmpeg's input format; path: what that opens. index: N of /dev/videoN, elsewhere its place.
    bus: where it is plugged in, which stays when /dev/videoN changes. formats: empty where the system does not say.
    error: errno of the attempt to ask it, 0 where it answered. twins: the `bus` of every other camera of that name when
    it was chosen: one of those is never taken for it, as it may look at something else."""

    name: str
    path: str
    index: int
    api: str
    driver: str = ""
    bus: str = ""
    formats: tuple[v4l2.Format, ...] = ()
    error: int = 0
    twins: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether it is the reading end of a virtual camera, ours or another program's."""
        software = self.api == "dshow" and self.bus.startswith(_SOFTWARE)
        return self._is_obs or software or "loopback" in self.driver or "v4l2loopback" in self.bus

    @property
    def is_own(self) -> bool:
        """Whether it is the virtual camera that rtbg itself writes to."""
        return self._is_obs or (self.is_loopback and self.name == OWN)

    @property
    def _is_obs(self) -> bool:
        return self.api in _API.values() and self.name == OBS


@dataclass(frozen=True, slots=True)
class Mode:
    """What a camera is asked for. format: FFmpeg's name of the pixel format or codec; empty: whatever it gives."""

    size: tuple[int, int]
    rate: Fraction
    format: str = ""


def list_cameras(*, formats: bool = True) -> list[Camera]:
    """Every camera, in the order of `index`; those that may not be opened too. Never raises.
    formats: whether they are asked for their formats, which is a hundred questions each."""
    api = _API.get(sys.platform)
    if api is None:
        cameras = [
            Camera(d.name, d.path, d.index, "v4l2", d.driver, d.bus, error=d.error)
            for d in v4l2.devices()
            if d.can_capture or d.error
        ]
        return [with_formats(c) for c in cameras] if formats else cameras
    cameras = []
    for index, (name, description) in enumerate(_listed(api)):
        file = f"video={name}" if api == "dshow" else f"{name}:none"
        bus = "" if api == "avfoundation" else name  # there a number, another one when a camera goes
        cameras.append(Camera(description or name, file, index, api, bus=bus))
    return cameras


def _listed(api: str) -> list[tuple[str, str]]:
    """(name, description) of the cameras that FFmpeg's input lists; none where there is no such input in this build, or
    the system refuses."""
    import av

    try:
        found = [(d.name, d.description) for d in av.enumerate_input_devices(api) if "video" in d.media_types]
    except OSError:
        return _told() if api == "dshow" else []
    except (ValueError, RuntimeError):
        return []
    return [(name, description) for name, description in found if not _SCREEN.fullmatch(description)]


def _told() -> list[tuple[str, str]]:
    """As `_listed`, from what DirectShow's input logs: its list fails where there is no sound input beside the
    cameras."""
    import av

    before = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as logged, suppress(av.FFmpegError, ValueError):
            av.open("dummy", format="dshow", options={"list_devices": "true"})
    finally:
        av.logging.set_level(before)
    text = "".join(message for _, _, message in logged)
    return [(name, description) for description, kinds, name in _LISTED.findall(text) if "video" in kinds]


def find_camera(spec: str = "", cameras: Sequence[Camera] | None = None) -> Camera:
    """The camera meant by an index ("0"), a path (/dev/video2, or a link to it) or part of a name, whatever its case.

    "": the first real one; where there is none, the only loopback that another program feeds. Our own virtual
    camera is only taken when it is named. Nodes of one device that share a name count as their first.
    cameras: None: `list_cameras()`. Raises InputError (there is none such) and UsageError (several are meant)."""
    spec = spec.strip()
    if cameras is None:
        return with_formats(find_camera(spec, list_cameras(formats=not spec)))
    found = _meant(spec, cameras)
    same = [c for c in cameras if c.name == found.name]
    buses = {c.bus for c in same if c.bus} - {found.bus}
    if not found.bus and len({c.path for c in same if not c.bus}) > 1:
        buses.add("")  # nothing tells them apart: none of them is taken again
    return replace(found, twins=tuple(sorted(buses)))


def find_again(camera: Camera, cameras: Sequence[Camera] | None = None) -> Camera | None:
    """The same camera after it has gone, wherever it is now: by its name and bus, else by its name, but none of its
    `twins`; None: not there."""
    if cameras is None:
        found = find_again(camera, list_cameras(formats=False))
        return None if found is None else with_formats(found)
    same = [c for c in cameras if c.name == camera.name and c.bus not in camera.twins]
    if camera.error:  # its name was a guess
        same = same or [c for c in cameras if c.path == camera.path]
    best = [c for c in same if c.bus == camera.bus] or same
    found = next((c for c in best if c.path == camera.path), best[0] if best else None)
    return found and replace(found, twins=camera.twins)


def with_formats(camera: Camera) -> Camera:
    """The camera with `formats`, or with the `error` of asking for them."""
    if camera.api != "v4l2" or camera.error or camera.formats:
        return camera
    try:
        return replace(camera, formats=tuple(v4l2.formats(camera.path)))
    except OSError as exc:
        return replace(camera, error=exc.errno or errno.EIO)


def choose_mode(camera: Camera, size: tuple[int, int], rate: Fraction) -> Mode:
    """The mode of a camera that is nearest to what is wanted: first those that reach the rate (or, where none does,
    the best rate there is), then the nearest size, then the nearest rate, then the cheapest format. So MJPEG is asked
    for where it gives the rate and the raw formats do not. What is wanted itself where nothing is known."""
    modes: list[tuple[Mode, int]] = []
    for form in camera.formats:
        name, order = _KNOWN.get(form.fourcc, ("", 0))
        for among in form.sizes if name else ():
            possible = among.rate(rate)
            modes.append((Mode(among.nearest(size), rate if possible is None else possible, name), order))
    if not modes:
        return Mode(size, rate)
    enough = min(rate, max(mode.rate for mode, _ in modes)) * _ENOUGH

    def cost(entry: tuple[Mode, int]) -> tuple[bool, float, Fraction, int]:
        mode, order = entry
        distance = sum(abs(math.log(max(1, have) / wanted)) for have, wanted in zip(mode.size, size, strict=True))
        return mode.rate < enough, distance, abs(mode.rate - rate), order

    return min(modes, key=cost)[0]


def raw_color(given: v4l2.PixelFormat) -> Color:
    """Matrix and range of raw pictures: V4L2's own defaults where the driver leaves them open, BT.601 and limited."""
    rec709, jpeg = given.colorspace == 3, given.colorspace == 7
    matrix = BT709 if given.encoding == 2 or (given.encoding == 0 and rec709) else SMPTE170M
    return Color(matrix, FULL if given.quantization == 1 or (given.quantization == 0 and jpeg) else LIMITED)


def describe(cameras: Sequence[Camera]) -> str:
    """What `--list-cameras` prints: number, path and name of each, then its formats with their sizes and rates."""
    if not cameras:
        return _none()
    lines = []
    for camera in cameras:
        where = f"{camera.path}  " if camera.api == "v4l2" else ""
        note = "  (rtbg's own virtual camera)" if camera.is_own else "  (virtual)" if camera.is_loopback else ""
        lines.append(f"{camera.index}  {where}{camera.name}{note}")
        if camera.error:
            lines.append(f"     {why_not(camera, camera.error)}")
        alike: dict[str, list[str]] = {}  # test devices have a hundred formats with the same sizes
        for form in camera.formats:
            alike.setdefault("; ".join(_sizes(form)) or "sizes unknown", []).append(form.fourcc)
        for sizes, names in alike.items():
            text = f"{', '.join(names)}: {sizes}"
            lines += textwrap.wrap(text, 100, initial_indent=" " * 5, subsequent_indent=" " * 9, break_on_hyphens=False)
        if not camera.formats and not camera.error:
            lines.append("     its formats are known once it is open")
    return "\n".join(lines)


def why_not(camera: Camera, number: int) -> str:
    """One line for an errno of opening or reading a camera: what is wrong and what to do."""
    where = f"{camera.name} ({camera.path})" if camera.api == "v4l2" and camera.name != camera.path else camera.name
    if number in (errno.EACCES, errno.EPERM):
        if camera.api == "avfoundation":
            return f"{where} may not be used: allow it in System Settings, Privacy & Security, Camera"
        if camera.api == "dshow":
            return f"{where} may not be used: allow it in Settings, Privacy & security, Camera"
        return f"{where} may not be opened: sudo usermod -aG video $USER, then log out and in again"
    if number == errno.EBUSY:
        return f"{where} is in use by another program: close that"
    if number in (errno.ENODEV, errno.ENOENT, errno.ENXIO):
        if camera.is_loopback:
            return f"{where} is a virtual camera that no program feeds: start that"
        return f"{where} is gone: plug it in again"
    if number == errno.ENOSPC:
        return f"{where} gets no room on its USB bus: plug it into another port, or ask for a smaller --size"
    if camera.api != "v4l2" and number == errno.EIO:
        return f"{where} cannot be opened: close other programs that use it, or plug it out and in again"
    reason = os.strerror(number) if number < _FFMPEG else "what it sends is not understood"
    return f"{where} does not work ({reason}): plug it out and in again"


def _meant(spec: str, cameras: Sequence[Camera]) -> Camera:
    if not spec:
        return _first(cameras)
    if spec.startswith(("/", ".")) or _is_device(spec):
        return _by_path(spec, cameras)
    if spec.isdigit():
        for camera in cameras:
            if camera.index == int(spec):
                return camera
    wanted = spec.casefold()
    found = [c for c in cameras if c.name.casefold() == wanted] or [c for c in cameras if wanted in c.name.casefold()]
    if not found:
        raise InputError(f"there is no camera {spec!r}: {_names(cameras)}")
    if any((c.name, c.bus) != (found[0].name, found[0].bus) for c in found):
        raise UsageError(f"{spec!r} may mean several cameras: name one of them by its number: {_names(found)}")
    return found[0]


def _first(cameras: Sequence[Camera]) -> Camera:
    real = [c for c in cameras if not c.is_loopback and not c.is_own]
    # One that answers before one that does not; one with colour before an infrared one, which has none.
    real.sort(key=lambda c: (c.error != 0, bool(c.formats) and all(f.fourcc in ("GREY", "Y16") for f in c.formats)))
    if real:
        return real[0]
    fed = [c for c in cameras if not c.is_own]
    if len(fed) == 1:
        return fed[0]
    if fed:
        raise InputError(f"there is no camera, only virtual ones: name the one that is meant: {_names(fed)}")
    raise InputError(_none() if not cameras else f"there is no camera but rtbg's own virtual one: {_names(cameras)}")


def _by_path(spec: str, cameras: Sequence[Camera]) -> Camera:
    try:
        real = str(Path(spec).resolve(strict=True))
    except OSError:
        raise InputError(f"{spec}: no such device: {_names(cameras)}") from None
    for camera in cameras:
        if camera.path in (spec, real):
            return camera
    if sys.platform not in _API and v4l2.device(real).can_output:
        raise InputError(f"{spec} is a virtual camera that no program feeds: start that, or {_names(cameras)}")
    raise InputError(f"{spec} is not a camera: {_names(cameras)}")


def _is_device(spec: str) -> bool:
    try:
        return stat.S_ISCHR(Path(spec).stat().st_mode)
    except (OSError, ValueError):
        return False


def _names(cameras: Sequence[Camera]) -> str:
    if not cameras:
        return _none()
    return "there is " + ", ".join(f"{c.index} ({c.name})" for c in cameras)


def _none() -> str:
    return "no camera was found: plug one in (rtbg --doctor looks closer), or let a file stand in: --webcam clip.mp4"


def _sizes(form: v4l2.Format) -> list[str]:
    """Sizes and rates of a format; neighbours with the same rates share them."""
    parts = []
    for (rates, between), group in groupby(form.sizes, key=lambda s: (s.rates, s.between)):
        shown = [
            f"{s.least[0]}x{s.least[1]} to {s.most[0]}x{s.most[1]}" if s.is_range else f"{s.most[0]}x{s.most[1]}"
            for s in group
        ]
        speeds = [f"{float(r):.4g}" for r in rates]
        at = f"{speeds[-1]} to {speeds[0]}" if between else ", ".join(dict.fromkeys(speeds))
        parts.append(", ".join(shown) + (f" at {at}" if at else ""))
    return parts
