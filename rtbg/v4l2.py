"""What Linux says of its cameras and virtual cameras: V4L2 ioctls by `fcntl` and `struct`, nothing else.

Used by `rtbg.cameras`, the webcam source, the virtual camera and the doctor. Imports on every system; what asks a
device raises OSError as the kernel gives it (errno, and the path in `filename`): callers say what to do about it.
The `parse_` functions take the bytes that the kernel fills in (linux/videodev2.h). Memory: a few kilobytes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

# -- linux/videodev2.h --

CAP_CAPTURE, CAP_OUTPUT, CAP_DEVICE_CAPS = 0x1, 0x2, 0x80000000
BUF_CAPTURE, BUF_OUTPUT = 1, 2
FMT_COMPRESSED = 0x1
DISCRETE = 1  # of sizes and of intervals alike; the others are ranges

_CAPABILITY = struct.Struct("<16s32s32sIII12x")
_FMTDESC = struct.Struct("<III32sI16x")
_FRMSIZE = struct.Struct("<III6I8x")
_FRMIVAL = struct.Struct("<IIIII6I8x")
# A v4l2_format holds pointers in its union, so this alone differs on 32-bit systems.
_FORMAT_SIZE, _FORMAT_AT = (208, 8) if struct.calcsize("P") == 8 else (204, 4)
_PIX_FORMAT = struct.Struct("<12I")
_STREAMPARM = struct.Struct("<5I184x")  # type; capability, mode, seconds from picture to picture as a fraction


def _number(direction: int, number: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h for the type "V". direction: 1 write, 2 read, 3 both."""
    return direction << 30 | size << 16 | ord("V") << 8 | number


QUERYCAP = _number(2, 0, _CAPABILITY.size)
ENUM_FMT = _number(3, 2, _FMTDESC.size)
G_FMT = _number(3, 4, _FORMAT_SIZE)
STREAMON = _number(1, 18, 4)
STREAMOFF = _number(1, 19, 4)
S_PARM = _number(3, 22, _STREAMPARM.size)
ENUM_FRAMESIZES = _number(3, 74, _FRMSIZE.size)
ENUM_FRAMEINTERVALS = _number(3, 75, _FRMIVAL.size)

_MOST = 256  # entries of one enumeration: a driver that never says "no more" does not hold us up
_ENDS = (errno.EINVAL, errno.ENOTTY)  # no more entries; no such ioctl


class Capability(NamedTuple):
    """Answer to QUERYCAP. `caps` are the node's own where the driver tells them apart from the whole device's."""

    driver: str
    card: str
    bus: str
    version: int
    capabilities: int
    caps: int


class PixelFormat(NamedTuple):
    """Answer to G_FMT; colorspace, encoding and quantization with V4L2's numbers."""

    width: int
    height: int
    fourcc: str
    colorspace: int
    bytes_per_line: int
    size: int
    encoding: int
    quantization: int


@dataclass(frozen=True, slots=True)
class Device:
    """One /dev/videoN. index: N. error: errno of the attempt to ask it, 0 where it answered; then only the name
    (from sysfs) is known. A node that only gives metadata, or is a codec, can neither capture nor output."""

    path: str
    name: str
    driver: str
    bus: str
    can_capture: bool
    can_output: bool
    index: int
    error: int = 0

    @property
    def is_loopback(self) -> bool:
        """Whether it is a virtual camera of v4l2loopback."""
        return "loopback" in self.driver or "v4l2loopback" in self.bus


@dataclass(frozen=True, slots=True)
class FrameSize:
    """A size, or where `least` and `most` differ every size between them by `step`, with the rates there.

    rates: pictures a second, fastest first; `between`: everything from the last to the first. For a range they
    are those of its largest size. Empty: the driver does not say."""

    least: tuple[int, int]
    most: tuple[int, int]
    step: tuple[int, int] = (1, 1)
    rates: tuple[Fraction, ...] = ()
    between: bool = False

    @property
    def is_range(self) -> bool:
        """Whether it stands for more than one size."""
        return self.least != self.most

    def nearest(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size among these that is nearest to one, per direction."""
        return (self._snap(0, size[0]), self._snap(1, size[1]))

    def _snap(self, axis: int, wanted: int) -> int:
        low, high, step = self.least[axis], self.most[axis], max(1, self.step[axis])
        return min(high, low + step * max(0, round((min(wanted, high) - low) / step)))

    def rate(self, wanted: Fraction) -> Fraction | None:
        """The rate nearest to one; None where the driver does not say."""
        if not self.rates:
            return None
        if self.between:
            return min(max(wanted, self.rates[-1]), self.rates[0])
        return min(self.rates, key=lambda r: (abs(r - wanted), -r))


@dataclass(frozen=True, slots=True)
class Format:
    """One pixel format of a device with its sizes, in the driver's order. fourcc: as "MJPG", "YUYV"."""

    fourcc: str
    description: str
    compressed: bool
    sizes: tuple[FrameSize, ...]


# -- parsing --


def fourcc(code: int) -> str:
    """A V4L2 pixel format as its four letters; trailing blanks go, big-endian ones end in "-BE"."""
    letters = (code & 0x7FFFFFFF).to_bytes(4, "little").decode("latin-1").rstrip(" \0")
    return letters + "-BE" if code >> 31 else letters


def parse_capability(data: bytes) -> Capability:
    """A struct v4l2_capability."""
    driver, card, bus, version, capabilities, own = _CAPABILITY.unpack_from(data)
    return Capability(
        _text(driver),
        _text(card),
        _text(bus),
        version,
        capabilities,
        own if capabilities & CAP_DEVICE_CAPS else capabilities,
    )


def parse_format_description(data: bytes) -> tuple[int, str, bool]:
    """A struct v4l2_fmtdesc: (pixel format, description, whether it is compressed)."""
    _, _, flags, description, code = _FMTDESC.unpack_from(data)
    return code, _text(description), bool(flags & FMT_COMPRESSED)


def parse_frame_size(data: bytes) -> FrameSize:
    """A struct v4l2_frmsizeenum, without rates."""
    _, _, kind, a, b, c, d, e, f = _FRMSIZE.unpack_from(data)
    if kind == DISCRETE:
        return FrameSize((a, b), (a, b))
    return FrameSize((a, d), (b, e), (max(1, c), max(1, f)))


def parse_frame_interval(data: bytes) -> tuple[tuple[Fraction, ...], bool]:
    """A struct v4l2_frmivalenum: (rates, fastest first, whether everything between them is possible too).
    Empty where it holds no usable number; a slowest interval of for ever, which v4l2loopback gives, is a second."""
    _, _, _, _, kind, *numbers = _FRMIVAL.unpack_from(data)
    if kind == DISCRETE:
        return tuple(_rate(*numbers[:2])), False
    fast, slow = _rate(*numbers[0:2]), _rate(*numbers[2:4]) or [Fraction(1)]
    if not fast:
        return (), False
    rates = tuple(sorted({*fast, *slow}, reverse=True))
    return rates, len(rates) == 2


def parse_pixel_format(data: bytes) -> PixelFormat:
    """A struct v4l2_format of a single-planar video buffer type."""
    w, h, code, _, line, size, space, _, _, encoding, quantization, _ = _PIX_FORMAT.unpack_from(data, _FORMAT_AT)
    return PixelFormat(w, h, fourcc(code), space, line, size, encoding, quantization)


def _rate(numerator: int, denominator: int) -> list[Fraction]:
    """Of an interval in seconds; nothing for none and for for ever."""
    return [Fraction(denominator, numerator)] if numerator and denominator else []


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace").strip()


# -- asking --


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of a device, not blocking, closed at the end. Opening alone disturbs no one who uses it."""
    fd = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        yield fd
    finally:
        os.close(fd)


def devices() -> list[Device]:
    """Every /dev/videoN in the order of N; those that cannot be asked too, with `error`. Empty elsewhere than on
    Linux. Never raises."""
    found = []
    for path in Path("/dev").glob("video*"):
        number = re.fullmatch(r"video(\d+)", path.name)
        try:
            if number and stat.S_ISCHR(path.stat().st_mode):
                found.append((int(number[1]), str(path)))
        except OSError:  # gone in this moment
            continue
    return [device(path, index) for index, path in sorted(found)]


def device(path: str, index: int = -1) -> Device:
    """What is known of one device; `index` is told by its caller. Never raises."""
    try:
        known = capability(path)
    except OSError as exc:
        return Device(path, _sysfs_name(path), "", "", False, False, index, exc.errno or errno.EIO)
    name = known.card or _sysfs_name(path)
    can_capture, can_output = bool(known.caps & CAP_CAPTURE), bool(known.caps & CAP_OUTPUT)
    return Device(path, name, known.driver, known.bus, can_capture, can_output, index)


def capability(path_or_fd: str | int) -> Capability:
    """What a device is. Raises OSError."""
    with _descriptor(path_or_fd) as fd:
        return parse_capability(_ask(fd, QUERYCAP, bytes(_CAPABILITY.size)))


def formats(path: str) -> list[Format]:
    """The formats that a camera gives, with their sizes and rates. Raises OSError."""
    found = []
    with opened(path) as fd:
        for data in _listed(fd, ENUM_FMT, lambda i: _FMTDESC.pack(i, BUF_CAPTURE, 0, b"", 0)):
            code, description, compressed = parse_format_description(data)
            found.append(Format(fourcc(code), description, compressed, _sizes(fd, code)))
    return found


def get_format(path_or_fd: str | int, output: bool) -> PixelFormat:
    """The format that is set right now, of the output or the capture side. Raises OSError: EINVAL where the device
    has no such side."""
    with _descriptor(path_or_fd) as fd:
        request = struct.pack("<I", BUF_OUTPUT if output else BUF_CAPTURE).ljust(_FORMAT_SIZE, b"\0")
        return parse_pixel_format(_ask(fd, G_FMT, request))


def streamon(fd: int, output: bool) -> None:
    """Starts streaming on a descriptor; it ends when that is closed. Raises OSError."""
    _ask(fd, STREAMON, struct.pack("<I", BUF_OUTPUT if output else BUF_CAPTURE))


def streamoff(fd: int, output: bool) -> None:
    """Stops streaming on a descriptor: who waits for a picture on it, on any thread, gets an error. Raises OSError."""
    _ask(fd, STREAMOFF, struct.pack("<I", BUF_OUTPUT if output else BUF_CAPTURE))


def set_rate(fd: int, rate: Fraction) -> Fraction | None:
    """Tells an output device how many pictures a second come, for its readers; what it made of that, None where it
    does not say. Raises OSError."""
    request = _STREAMPARM.pack(BUF_OUTPUT, 0, 0, rate.denominator, rate.numerator)
    _, _, _, numerator, denominator = _STREAMPARM.unpack(_ask(fd, S_PARM, request))
    return next(iter(_rate(numerator, denominator)), None)


def open_descriptors(path: str) -> list[int]:
    """The descriptors of this process that are open on a device or file. Empty elsewhere than on Linux."""
    found = []
    for entry in Path("/proc/self/fd").glob("*"):
        try:
            if str(entry.readlink()) == path:
                found.append(int(entry.name))
        except OSError:  # closed in this moment
            continue
    return found


def _sizes(fd: int, code: int) -> tuple[FrameSize, ...]:
    found = []
    for data in _listed(fd, ENUM_FRAMESIZES, lambda i: struct.pack("<II", i, code).ljust(_FRMSIZE.size, b"\0")):
        size = parse_frame_size(data)
        rates, between = _rates(fd, code, size.most)
        found.append(FrameSize(size.least, size.most, size.step, rates, between))
        if size.is_range:  # is the only entry; some drivers give it again for every index
            break
    return tuple(dict.fromkeys(found))


def _rates(fd: int, code: int, size: tuple[int, int]) -> tuple[tuple[Fraction, ...], bool]:
    found: set[Fraction] = set()
    for data in _listed(fd, ENUM_FRAMEINTERVALS, lambda i: _FRMIVAL.pack(i, code, *size, 0, *[0] * 6)):
        rates, between = parse_frame_interval(data)
        if between:
            return rates, True
        found.update(rates)
    return tuple(sorted(found, reverse=True)), False


def _listed(fd: int, request: int, entry: Callable[[int], bytes]) -> Iterator[bytes]:
    """The answers for index 0, 1, ... to the last."""
    for index in range(_MOST):
        try:
            yield _ask(fd, request, entry(index))
        except OSError as exc:
            if exc.errno in _ENDS:
                return
            raise


def _ask(fd: int, request: int, data: bytes) -> bytes:
    """One ioctl, asked again where a signal came in between."""
    import fcntl  # only where there are such devices

    for _ in range(100):
        try:
            return bytes(fcntl.ioctl(fd, request, data))
        except InterruptedError:
            time.sleep(0.001)
    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))


@contextmanager
def _descriptor(path_or_fd: str | int) -> Iterator[int]:
    if isinstance(path_or_fd, int):
        yield path_or_fd
        return
    with opened(path_or_fd) as fd:
        try:
            yield fd
        except OSError as exc:
            exc.filename = exc.filename or path_or_fd
            raise


def _sysfs_name(path: str) -> str:
    try:
        return Path(f"/sys/class/video4linux/{Path(path).name}/name").read_text("utf-8", "replace").strip()
    except OSError:
        return Path(path).name
