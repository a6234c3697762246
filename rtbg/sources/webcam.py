"""A webcam as a live source, by FFmpeg's V4L2, DirectShow and AVFoundation inputs through PyAV.

Chosen over OpenCV's capture: a JPEG becomes planes at once (OpenCV's decoder gives BGR, about as cheap
but with chroma averaged twice), the raw formats stay raw without a second path of our own, errors come as errno,
and the kernel's time of each picture is there. Its numbers are in `rtbg.sources.i420`.

    capture thread                                          reader
    look for the camera ─▶ open ─▶ newest packet ─▶ decode ─▶ I420 ─▶ newest frame ─▶ read
         ▲        errors: one line, wait a second │
         └────────────────────────────────────────┘

Memory: one frame, and the buffers of the driver.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from rtbg import v4l2
from rtbg.cameras import Camera, Mode, choose_mode, find_again, raw_color, why_not
from rtbg.errors import NoPicture
from rtbg.frame import LIMITED, SMPTE170M, Array, Color, Frame, StreamInfo
from rtbg.sources.i420 import I420, WORKING, even

_log = logging.getLogger("rtbg")
_PATIENCE = 1.0  # seconds without a picture that make a camera silent, between attempts, and for `read`
_LATE = 1.5  # intervals without one that do so where those are longer, but of a second at most
_FIRST = 5.0  # seconds that a camera may take for its first picture before it is opened anew
_STALLED = 3.0  # the same for a later one
_POLL = 0.2  # seconds between two looks at whether the source was closed
_BROKEN = 60  # pictures in a row that cannot be decoded before the camera is opened anew
_WHOLE = ("mjpeg", "rawvideo", "wrapped_avframe")  # codecs of which a picture can be left out
_MORE = Fraction(51, 50)  # of the wanted rate: 30 for 29.97 is no more
_MOST_SKIPPED = 64  # pictures left out in a row for newer ones
_NON_BLOCK = 0x4  # AVFMT_FLAG_NONBLOCK
_NAMES = {"yuyv422": "YUYV", "uyvy422": "UYVY", "yuv420p": "I420", "gray": "GREY"}

_TRYING = "; rtbg keeps trying"

Opener = Callable[[Camera, Mode], InputContainer]
Finder = Callable[[Camera], "Camera | None"]


def open_camera(camera: Camera, mode: Mode) -> InputContainer:
    """Opens a camera in a mode, or where it refuses that in whatever mode it likes. Raises av.FFmpegError with the
    system's errno. Blocks until the first picture is there."""
    # FFmpeg would read pictures for seconds to learn what it was told already.
    quick = {"probesize": "32", "fpsprobesize": "0"}
    rate = f"{mode.rate.numerator}/{mode.rate.denominator}"
    wanted = {"video_size": f"{mode.size[0]}x{mode.size[1]}", "framerate": rate}
    if camera.api == "v4l2":
        attempts = [{**wanted, "input_format": mode.format}] if mode.format else []
        attempts += [wanted, {}]
    elif camera.api == "dshow":
        quick["rtbufsize"] = "64M"  # the default holds one raw picture
        attempts = [wanted, {"video_size": wanted["video_size"]}, {}]
    else:
        attempts = [{**wanted, "pixel_format": "nv12"}, wanted, {"framerate": rate}, {}]
    for options in attempts[:-1]:
        try:
            return av.open(camera.path, format=camera.api, options={**quick, **options})
        except av.FFmpegError as exc:
            # "Such a mode is not there" is worth another attempt; gone, busy and forbidden are not.
            if exc.errno not in (errno.EINVAL, errno.EIO, errno.ENOTTY):
                raise
    return av.open(camera.path, format=camera.api, options={**quick, **attempts[-1]})


class WebcamSource:
    """Live pictures of a camera: 8-bit I420, BT.601, limited range, always of the size that `info` tells.

    size, rate: what is wanted; the nearest that the driver offers is asked for and told by `info`, before the camera
    is opened by the first `read`. What it really gives is told by `obtained`; pictures of another size are scaled to
    cover `info`'s, the middle kept; where it gives more a second than wanted, some are left out, evenly. mirror: left
    and right change places. Time base 1/1000000, pts counts from when the source was made; `captured` is when the
    kernel took the picture, where it tells, else when it came.

    `read` raises NoPicture within about a second (a half more at one picture a second), one line with what
    is wrong and what to do, while the camera is missing, unplugged, busy, forbidden or silent; meanwhile the capture
    thread looks for it about once a second, by name and bus, and goes on by itself. None comes after `close` only.
    dropped: pictures that a newer one replaced before they were read.
    opener, finder: how the camera is opened, and looked for again; for other kinds of devices."""

    live = True

    def __init__(
        self,
        camera: Camera,
        *,
        size: tuple[int, int] = (1280, 720),
        rate: int | float | Fraction = 30,
        mirror: bool = False,
        opener: Opener = open_camera,
        finder: Finder = find_again,
    ) -> None:
        self._made = time.perf_counter()
        self._camera, self._opener, self._finder = camera, opener, finder
        wanted = Fraction(rate).limit_denominator(1001)
        self._mode = choose_mode(camera, size, wanted)
        thinned = self._mode.rate > wanted * _MORE
        self.info = StreamInfo(
            *even(self._mode.size),
            time_base=Fraction(1, 1_000_000),
            rate=wanted if thinned else self._mode.rate,
            color=WORKING,
        )
        self._step = float(1 / wanted) if thinned else 0.0  # seconds from one picture that is kept to the next
        self._next = 0.0  # when the next one is due; half an interval of the camera sooner will do
        self._early = float(1 / self._mode.rate) / 2
        self._patience = max(_PATIENCE, _LATE / max(1.0, float(self.info.rate)))
        self.obtained = ""
        self.dropped = 0
        self._to_i420 = I420((self.info.width, self.info.height), mirror=mirror)
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._trouble = ""  # what is wrong, until the next picture
        self._told = True  # whether `read` has raised it
        self._opening: float | None = None  # since when the driver has been asked to open
        self._woken = False  # whether it was made to give up
        self._closed = False
        self._pts = -1
        self._thread: threading.Thread | None = None

    def read(self) -> Frame | None:
        """The newest picture, once; None after `close`. Raises NoPicture: at once when something went wrong, then
        about once a second while it lasts."""
        with self._changed:
            if self._closed:
                return None
            if self._thread is None:
                # Daemonic: a driver may block it for ever, and must not keep the program from ending.
                self._thread = threading.Thread(target=self._capture, name="rtbg-camera", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._frame is not None or self._closed or not self._told, self._patience)
            if self._closed:
                return None
            frame, self._frame = self._frame, None
            if frame is not None:
                return frame
            self._told = True
            opening, trouble = self._opening, self._trouble
        if opening is not None and (since := time.perf_counter() - opening) > _PATIENCE:
            trouble = self._silent()
            if since > _FIRST:
                self._wake()
        if not trouble:
            started = self._pts >= 0
            trouble = self._silent() if started else f"{self._camera.name} has not sent a picture yet: it is starting"
        raise NoPicture(trouble)

    def close(self) -> None:
        """Ends the stream and frees the camera; within two seconds, even when its driver does not answer."""
        with self._changed:
            self._closed, self._frame = True, None
            self._changed.notify_all()
        if self._thread is None:
            return
        for _ in range(8):
            if self._opening is not None:
                self._wake()
            self._thread.join(0.25)
            if not self._thread.is_alive():
                return
        _log.warning("the driver of %s does not answer: it is left to itself", self._camera.name)

    # -- the capture thread --

    def _capture(self) -> None:
        """Opens the camera and takes its pictures, over and over."""
        while not self._closed:
            try:
                self._session()
            except NoPicture as exc:
                self._fail(str(exc))
            except (OSError, av.FFmpegError) as exc:
                known = self._silent() if self._woken else why_not(self._camera, exc.errno or errno.EIO) + _TRYING
                self._fail(known)
            except Exception as exc:  # nobody reads this thread's errors: `read` has to tell
                self._fail(f"{self._camera.name} cannot be read ({exc}){_TRYING}")
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _PATIENCE)

    def _session(self) -> None:
        """From one opening to the first error, which it raises, or to `close`."""
        camera = self._finder(self._camera)
        if camera is None:
            raise OSError(errno.ENODEV, "not there")
        if camera.error:
            raise OSError(camera.error, os.strerror(camera.error))
        self._camera = camera
        mode = (
            choose_mode(camera, (self.info.width, self.info.height), self.info.rate) if camera.formats else self._mode
        )
        if self._closed:
            return
        self._woken, self._opening = False, time.perf_counter()
        try:
            container = self._opener(camera, mode)
        finally:
            self._opening = None
        try:
            if not self._closed:
                self._take(container)
        finally:
            # By now no packet and no raw picture may be left: they lie in the driver's memory, which goes here.
            container.close()

    def _take(self, container: InputContainer) -> None:
        """Takes the pictures of an opened camera. Raises NoPicture and what FFmpeg raises."""
        session = _Session(container, self._camera)
        size = (session.stream.codec_context.width, session.stream.codec_context.height)
        self._note(session, size)
        skipped = broken = 0
        strict = True  # against pictures that the decoder calls damaged, while there are others
        since, patience = time.perf_counter(), _FIRST
        packet = frame = None
        try:
            while not self._closed:
                packet = frame = None
                if not session.ready(_POLL):
                    self._watch(since, patience)
                    continue
                try:
                    packet = session.packet()
                    if packet is None:
                        self._watch(since, patience)
                        continue
                    if session.can_skip and skipped < _MOST_SKIPPED and session.ready(0):
                        skipped += 1  # there is a newer one
                        continue
                    self.dropped += skipped
                    skipped = 0
                    captured = session.time_of(packet.pts)
                    wanted = self._due(captured)
                    if not wanted and session.can_skip:
                        since = time.perf_counter()
                        continue
                    for frame in packet.decode() if packet.size else ():
                        if frame.is_corrupt and strict:
                            continue
                        if (frame.width, frame.height) != size:
                            size = (frame.width, frame.height)
                            self._note(session, size)
                        if wanted:
                            self._give(self._to_i420.decoded(frame, session.color), captured)
                        broken, since, patience = -1, time.perf_counter(), _STALLED
                except (av.InvalidDataError, ValueError) as exc:
                    if isinstance(exc, av.FFmpegError) and not isinstance(exc, av.InvalidDataError):
                        raise  # EINVAL, of the driver
                broken += 1
                strict = strict and broken < _BROKEN // 2
                if broken >= _BROKEN:
                    raise NoPicture(f"{self._camera.name} sends only damaged pictures: try another cable or USB port")
        except BaseException as exc:
            traceback.clear_frames(exc.__traceback__)  # they may hold a raw picture
            raise
        finally:
            packet = frame = None
            session.end()

    def _due(self, captured: float) -> bool:
        """Whether a picture of that moment is one of those that are kept to come down to the wanted rate."""
        return captured >= self._next - self._early

    def _give(self, planes: tuple[Array, ...], captured: float) -> None:
        if self._step:  # the next one is due a step after this one was, or after it came where that is long ago
            self._next = (captured if captured - self._next > self._step else self._next) + self._step
        with self._changed:
            self._pts = max(self._pts + 1, round((captured - self._made) * 1_000_000))
            self.dropped += self._frame is not None
            self._frame = Frame(planes, self._pts, self.info.time_base, WORKING, captured)
            self._trouble, self._told = "", True
            self._changed.notify_all()

    def _fail(self, message: str) -> None:
        with self._changed:
            if message != self._trouble:
                self._trouble, self._told = message, False
                self._changed.notify_all()

    def _watch(self, since: float, patience: float) -> None:
        """Tells that the camera is silent; raises NoPicture when it has been for so long that it is opened anew."""
        silent = time.perf_counter() - since
        if silent > patience:
            raise NoPicture(self._silent())
        if silent > self._patience:
            self._fail(self._silent())

    def _silent(self) -> str:
        return f"{self._camera.name} sends no picture: is it asleep, or what feeds it stopped? rtbg keeps trying"

    def _wake(self) -> None:
        """Gets the capture thread out of the driver, where it waits for a first picture while it opens the camera."""
        self._woken = True
        for fd in v4l2.open_descriptors(os.path.realpath(self._camera.path)):
            try:
                v4l2.streamoff(fd, output=False)
            except OSError as exc:
                _log.debug("%s: cannot be woken: %s", self._camera.path, exc)

    def _note(self, session: _Session, size: tuple[int, int]) -> None:
        """Sets `obtained`; says so when it is another size than was promised."""
        rate = f"{float(session.rate or self.info.rate):.4g}"
        text = f"{self._camera.name}: {size[0]}x{size[1]} at {rate}, {session.format}"
        if size != (self.info.width, self.info.height):
            shown = f"{self.info.width}x{self.info.height}"
            if text not in self.obtained:
                _log.warning("%s sends %dx%d: its pictures are scaled to %s", self._camera.name, *size, shown)
            text += f", scaled to {shown}"
        if self._step:
            text += f", thinned out to {float(self.info.rate):.4g}"
        self.obtained = text


class _Session:
    """An opened camera. `poll`: its descriptor where it can be waited for. Raises NoPicture where it has no picture
    stream."""

    def __init__(self, container: InputContainer, camera: Camera) -> None:
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.codec_context is None:
            raise NoPicture(f"{camera.name} sends something that is no picture: choose another camera")
        stream.codec_context.thread_count = 1
        self.name = camera.name
        self.stream: VideoStream = stream
        self.poll = _descriptor(camera.path)
        self.color = Color(SMPTE170M, LIMITED) if self.poll is None else _color(self.poll)
        # Where each packet is a picture of its own, one may be left out.
        self.can_skip = self.poll is not None and stream.codec_context.name in _WHOLE
        self._kernel_time = camera.api == "v4l2"
        self._asked = time.perf_counter()  # when `time_of` was last
        self._container = container
        self._packets: Iterator[av.Packet[VideoStream]] | None = None
        if self.poll is None:
            container.flags |= _NON_BLOCK

    def packet(self) -> av.Packet[VideoStream] | None:
        """The next packet, None where there is none yet; an empty one is a damaged picture. Raises NoPicture at the
        end and what FFmpeg raises."""
        if self._packets is None:
            self._packets = self._container.demux(self.stream)
        try:
            packet = next(self._packets, None)
        except BlockingIOError:
            self._packets = None
            if self.poll is None:
                time.sleep(0.002)
            return None
        except BaseException:
            self._packets = None
            raise
        if packet is None or (packet.pts is None and packet.dts is None and not packet.size):
            raise NoPicture(f"{self.name} gives no more pictures{_TRYING}")
        return packet

    def end(self) -> None:
        """Lets go of everything that lies in the driver's memory."""
        self._packets = None

    @property
    def rate(self) -> Fraction | None:
        """Pictures a second by what the driver says."""
        return self.stream.average_rate or self.stream.guessed_rate

    @property
    def format(self) -> str:
        """What the camera sends, as people call it."""
        context = self.stream.codec_context
        name = context.name if context.name not in ("rawvideo", "wrapped_avframe") else context.pix_fmt or ""
        return _NAMES.get(name, name.upper())

    def ready(self, seconds: float) -> bool:
        """Whether reading would not block; waits for that. True where it cannot be known."""
        if self.poll is None:
            return True
        poll = select.poll()
        poll.register(self.poll, select.POLLIN | select.POLLERR)
        return bool(poll.poll(round(seconds * 1000)))  # an error is found by reading

    def time_of(self, pts: int | None) -> float:
        """time.perf_counter() of a picture: V4L2's time where it is of that clock, else now. It is where the picture is
        less than a second older than this was last asked: a process that was stopped (Ctrl-Z) finds those of then."""
        now, asked = time.perf_counter(), self._asked
        self._asked = now
        if self._kernel_time and pts is not None and self.stream.time_base:
            taken = float(pts * self.stream.time_base)
            if 0 <= now - taken < 1 + now - asked:
                return taken
        return now


def _descriptor(path: str) -> int | None:
    """The descriptor that FFmpeg has open on a device (or on a pipe in its place): V4L2's reading cannot be
    interrupted, so that it is only begun when there is something to read."""
    if not sys.platform.startswith("linux"):
        return None
    for fd in v4l2.open_descriptors(os.path.realpath(path)):
        mode = os.fstat(fd).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
            return fd
    return None


def _color(fd: int) -> Color:
    """Matrix and range of raw pictures by what the driver says of them."""
    try:
        return raw_color(v4l2.get_format(fd, output=False))
    except OSError:
        return Color(SMPTE170M, LIMITED)
