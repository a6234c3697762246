"""A microphone beside a live recording (`--mic NAME`), by FFmpeg's ALSA, PulseAudio, DirectShow and AVFoundation inputs
through PyAV. Used by the command line and by `VideoSink`, which writes the sound as a `LiveTrack`.

    capture thread: open ─▶ read a packet ─▶ time of its samples, on the clock of the pictures ─▶ feed (`LiveTrack`)

An audio file can stand in, played in real time, over and over. Memory: one packet; the track has the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from rtbg.errors import InputError
from rtbg.paths import is_file

_log = logging.getLogger("rtbg")
INPUTS = ("pulse", "alsa", "oss", "jack", "sndio", "dshow", "avfoundation")  # FFmpeg's, as they go before a name
_USUAL = {"win32": ("dshow",), "darwin": ("avfoundation",)}  # elsewhere Linux's: the first that the build has
_LINUX = ("pulse", "alsa", "oss")
_ALSA = Path("/usr/share/alsa")
_OPEN = 5.0  # seconds that a driver may take to open
_LEAVE = 2.0  # seconds that a read may take to come back once nobody listens
_SILENT = 5.0  # seconds without a sample after which that is said
_WINDOW = 1.0  # seconds over which samples must come late before they are taken to have been late, not held up
_LOOSE = 0.01  # seconds by which the two clocks may differ: the jitter of a thread's turn
_NON_BLOCK = 0x4  # AVFMT_FLAG_NONBLOCK
_WHY = {
    errno.EBUSY: "another program uses it",
    errno.EACCES: "no permission: on Linux, join the group audio; elsewhere, allow it in the privacy settings",
    errno.EPERM: "no permission",
    errno.ENODEV: "it is not there",
    errno.ENOENT: "it is not there",
}


class Microphone:
    """Captures from the moment it is made until `close`.

    name: a sound file; or one of the system's inputs: its name or a part of what it is called, "default", or one of
        `INPUTS`, a colon and that input's own name ("alsa:plughw:1").
    description: what was really opened, such as "hw:1: 48000 Hz, stereo". rate, channels: its own.
    Raises InputError, one line, where it cannot be opened or does not answer within five seconds. Later it never
    raises: what goes wrong then is one warning, and no more sound comes."""

    def __init__(self, name: str) -> None:
        self._name, self._file = name, Path(name) if is_file(name) else None
        self._feed: Callable[[Any], None] | None = None
        self.description = ""
        self.rate = self.channels = 0
        self._last = time.perf_counter()  # when samples came
        self._told = False  # that none come
        self._opened, self._closed = threading.Event(), threading.Event()
        self._refused: InputError | None = None
        # Daemonic: a driver may block it for ever, and must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="rtbg-mic", daemon=True)
        self._thread.start()
        try:
            answered = self._opened.wait(_OPEN)
        except BaseException:
            self._closed.set()
            raise
        if not answered:
            self._closed.set()  # should it come back, it ends
            raise InputError(f"the microphone {name!r} does not answer: unplug it and plug it in, or name another")
        if self._refused is not None:
            self._thread.join()
            raise self._refused

    def record(self, feed: Callable[[Any], None]) -> None:
        """From now on `feed` is called with each av.AudioFrame, on the capture thread; its pts times its time_base is
        time.perf_counter() of its first sample. What `feed` raises ends the sound with a warning."""
        self._feed = feed

    def watch(self) -> None:
        """Says so, once, when no sample has come for five seconds. From any thread."""
        silent = time.perf_counter() - self._last > _SILENT
        if silent and not self._told and self._thread.is_alive():
            _log.warning("the microphone %s sends nothing: the recording goes on without sound", self._name)
        self._told = self._told or silent

    @property
    def alive(self) -> bool:
        """Whether sound may still come."""
        return self._thread.is_alive() and not self._closed.is_set()

    def close(self) -> None:
        """Ends the capture and frees the device; within two seconds, even when its driver does not answer. May be
        called twice."""
        self._feed = None
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(_LEAVE)
        if self._thread.is_alive():
            _log.warning("the driver of the microphone %s does not answer: it is left to itself", self._name)

    # -- the capture thread --

    def _run(self) -> None:
        container: Any = None
        try:
            container = self._open()
            stream = next(iter(container.streams.audio), None)
            if stream is None or not stream.rate or not stream.codec_context.channels:
                raise InputError(f"{self._name} holds no sound: name a microphone or a sound file")
            self.rate, self.channels = stream.rate, stream.codec_context.channels
            kind = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
            self.description = f"{self._name}: {self.rate} Hz, {kind}" + (", a file" if self._file else "")
            self._opened.set()
            clock = _Clock(self.rate)
            for frame in self._paced(container, stream) if self._file else self._read(container, stream):
                if self._closed.is_set():
                    return
                self._last = time.perf_counter()
                begins = clock.time(self._last, frame.samples)
                frame.pts, frame.time_base = round(begins * 1_000_000), Fraction(1, 1_000_000)
                if (feed := self._feed) is not None:
                    feed(frame)
        except Exception as exc:  # nobody reads this thread's errors
            self._fail(exc)
        finally:
            if container is not None:
                container.close()

    def _fail(self, exc: Exception) -> None:
        why = " ".join(str(getattr(exc, "strerror", None) or exc).split())
        if not self._opened.is_set():
            if not isinstance(exc, InputError):
                text = f"the microphone {self._name!r} cannot be opened ({why}): {_advice()}"
                exc, cause = InputError(text), exc
                exc.__cause__ = cause
            self._refused = exc
            self._opened.set()
        elif not self._closed.is_set():
            _log.warning("the microphone %s failed (%s): the recording goes on without sound", self._name, why)

    def _open(self) -> Any:
        if self._file is not None:
            return av.open(f"file:{self._name}", metadata_errors="replace")
        form, url = find_microphone(self._name)
        attempts: list[dict[str, str]] = [{}]
        if form in ("alsa", "oss"):  # stereo is what they ask a card for, which may have one channel
            attempts.append({"channels": "1"})
        elif form == "dshow":
            attempts = [{"audio_buffer_size": "50"}]  # milliseconds; it would give half a second at once
        for options in attempts[:-1]:
            with contextlib.suppress(av.FFmpegError):
                return av.open(url, format=form, options=options)
        try:
            return av.open(url, format=form, options=attempts[-1])
        except av.FFmpegError as exc:
            if exc.errno in _WHY:
                raise InputError(f"the microphone {self._name!r} cannot be opened: {_WHY[exc.errno]}") from exc
            raise

    def _read(self, container: Any, stream: Any) -> Iterator[Any]:
        """The frames of a device, as they come."""
        container.flags |= _NON_BLOCK  # where the input heeds it: a silent device then does not hold the thread
        packets: Any = None
        while not self._closed.is_set():
            packets = packets or container.demux(stream)
            try:
                packet = next(packets, None)
            except BlockingIOError:
                packets = None
                self._closed.wait(0.005)
                continue
            if packet is None or not packet.size:
                raise InputError("it gives no more sound")
            yield from packet.decode()

    def _paced(self, container: Any, stream: Any) -> Iterator[Any]:
        """The frames of a file over and over, each when its last sample would have been recorded."""
        begun, count = time.perf_counter(), 0
        while not self._closed.is_set():
            before = count
            for frame in container.decode(stream):
                count += frame.samples
                if self._closed.wait(max(0.0, begun + count / self.rate - time.perf_counter())):
                    return
                yield frame
            if count == before:
                raise InputError("it holds no sound that can be decoded")
            container.seek(0)


class _Clock:
    """The time of samples, which a sound card counts by a clock of its own, on the clock of the pictures.

    They are one after the other from the first one on; no packet can come before its last sample was recorded, so that
    the earliest one says where they lie, and when all of them come late for a second, some have been lost."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._begun: float | None = None
        self._count = 0
        self._since = 0.0
        self._least = math.inf

    def time(self, arrived: float, samples: int) -> float:
        """Seconds, of the first of `samples` that came together at `arrived`."""
        if self._begun is None:
            self._begun, self._since = arrived - samples / self._rate, arrived
        self._count += samples
        late = arrived - (self._begun + self._count / self._rate)
        if late < -_LOOSE:
            self._begun += late
            late = 0.0
        self._least = min(self._least, late)
        if arrived - self._since > _WINDOW:
            if self._least > _LOOSE:
                self._begun += self._least
            self._since, self._least = arrived, math.inf
        return self._begun + (self._count - samples) / self._rate


def find_microphone(name: str) -> tuple[str, str]:
    """(FFmpeg's input, what it opens) for the name of a microphone. Raises InputError."""
    if not name.strip():  # every system has its own idea of which device that would be
        raise InputError("the name of the microphone is empty: --mic takes one, a sound file, or default")
    form, _, rest = name.partition(":")
    if form not in INPUTS or not rest:
        usual = _USUAL.get(sys.platform, _LINUX)
        form, rest = next((f for f in usual if _has(f)), usual[-1]), name
    if not _has(form):
        raise InputError(f"the microphone {name!r} cannot be opened: this build of FFmpeg has no {form} input")
    if form == "alsa":
        _prepare_alsa()
    device = _device(rest, _devices(form))
    return form, {"dshow": "audio=", "avfoundation": ":"}.get(form, "") + device


def _device(wanted: str, devices: Sequence[tuple[str, str]]) -> str:
    """The name of the device that is meant by its name, by "default", or by a part of what it is called; else what was
    said, which may be a name that is not listed. Raises InputError where it may be several."""
    names = [name for name, _ in devices]
    if wanted in names or not names:
        return wanted
    if wanted == "default":
        return wanted if sys.platform != "win32" else names[0]
    found = [name for name, text in devices if wanted.casefold() in text.casefold()]
    # Of ALSA's many names for one card, the one that gives every format.
    found = [name for name in found if name.startswith("plughw:")] or found
    if len(found) > 1:
        raise InputError(f"{wanted!r} may mean several microphones: name one of {', '.join(found[:8])}")
    return found[0] if found else wanted


# What ALSA's library calls in place of writing to stderr: file, line, function, error, format.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)
_UNHEARD = _HANDLER(lambda *_: None)


def _prepare_alsa() -> None:
    """ALSA's library within PyAV's wheel looks for its configuration where it was built, and tells its own errors on
    stderr, several lines each."""
    if "ALSA_CONFIG_DIR" not in os.environ and _ALSA.is_dir():
        os.environ["ALSA_CONFIG_DIR"] = str(_ALSA)
    with contextlib.suppress(OSError, AttributeError):  # then it is loud
        lines = Path("/proc/self/maps").read_text().splitlines()
        for path in {line.split(maxsplit=5)[5] for line in lines if "/libasound" in line}:
            ctypes.CDLL(path).snd_lib_error_set_handler(_UNHEARD)


def _devices(form: str) -> list[tuple[str, str]]:
    """(name, what it is called) of the inputs that FFmpeg lists."""
    try:
        found = av.enumerate_input_devices(form)
    except (ValueError, OSError, RuntimeError):  # the input cannot list them
        return []
    return [(d.name, d.description or d.name) for d in found if not d.media_types or "audio" in d.media_types]


def _has(form: str) -> bool:
    try:
        return bool(av.ContainerFormat(form, "r").is_input)
    except ValueError:
        return False


def _advice() -> str:
    """What to do about a microphone that cannot be opened, on this system."""
    form = next((f for f in _USUAL.get(sys.platform, _LINUX) if _has(f)), "")
    names = [f"{name!r}" for name, _ in _devices(form)][:6] if form else []
    if form == "alsa":  # what it lists first are aliases that need plug-ins
        return "name the card and device that `arecord -l` shows, such as --mic plughw:1,0"
    return f"there are {', '.join(names)}" if names else "no microphone is there: plug one in"
