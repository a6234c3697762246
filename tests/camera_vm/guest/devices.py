"""The machine's cameras, what stands before them, and readers of the virtual camera. Used by checks.py."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np

HERE = Path(__file__).parent.parent
LOGS = Path("/out")
PATIENT = (sys.executable, str(HERE / "guest/rtbg_patient.py"))  # rtbg, see there
SIZE = WIDTH, HEIGHT = 320, 240
RATE = 4  # pictures a second
WEBCAM, VCAM = "/dev/video10", "/dev/video11"
STREAMON = 0x40045612  # VIDIOC_STREAMON


def command(*words: str, seconds: float = 120) -> tuple[int, str, str]:
    """Exit status (124: it did not end), output and errors of a program."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as exc:
        return 124, (exc.stdout or b"").decode(errors="replace"), (exc.stderr or b"").decode(errors="replace")
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def until(true: Callable[[], object], seconds: float) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def offers(device: str) -> str:
    """Of a device: C, somebody may read; O, somebody may write."""
    caps = command("v4l2-ctl", "-d", device, "--info")[1].partition("Device Caps")[2]
    return "C" * ("Video Capture" in caps) + "O" * ("Video Output" in caps)


class Program:
    """A program in the background; its output and errors are in /out/NAME.log."""

    def __init__(self, name: str, *words: str) -> None:
        self.log = LOGS / f"{name}.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int | None:
        """Its exit status after a signal; None: it had to be killed."""
        if self.runs:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.end(signal.SIGKILL)


def rtbg(name: str, *words: str) -> Program:
    """rtbg in the background, with a latency budget for this machine."""
    return Program(name, *PATIENT, *words)


def feed() -> Program:
    """Plays the clip as the fake webcam: raw pictures, copied, since converting is dear on an emulated computer."""
    raw = f"-f rawvideo -pix_fmt yuyv422 -s {WIDTH}x{HEIGHT} -r {RATE} -i {HERE}/webcam.yuyv"
    words = f"ffmpeg -loglevel error -nostdin -re -stream_loop -1 {raw} -c copy -f v4l2 {WEBCAM}"
    if "O" not in offers(WEBCAM):  # ffmpeg was killed, and v4l2loopback 0.12 takes the device still to be written
        fd = os.open(WEBCAM, os.O_RDWR)
        with suppress(OSError):
            fcntl.ioctl(fd, STREAMON, struct.pack("i", 2))  # of the output; on closing it is free again
        os.close(fd)
    source = Program("feed", *words.split())
    until(lambda: offers(WEBCAM) == "C", 60)
    # Else the device says that it gives 30 pictures a second.
    Path(f"/sys/class/video4linux/{Path(WEBCAM).name}/format").write_text(f"@{RATE}/1")
    return source


@dataclass(frozen=True)
class Look:
    """Shares of a picture. room, person: of the pixels that are always room, or person, those that show the
    background, or a person as the clip has it. card: of all, those that show the background. camera_only: of all,
    those in the colour that the camera alone shows. grey: of all, mid grey ones."""

    room: float
    person: float
    card: float
    camera_only: float
    grey: float
    at: float = 0.0

    @property
    def is_picture(self) -> bool:
        return self.room > 0.95 and self.person > 0.9 and self.camera_only < 0.01

    @property
    def is_card(self) -> bool:
        return self.card > 0.98 and self.camera_only == 0

    @property
    def is_grey(self) -> bool:
        return self.grey > 0.99

    def __str__(self) -> str:
        names = ("room", "person", "card", "camera_only", "grey")
        return ", ".join(f"{n} {getattr(self, n):.3f}" for n in names)


class Expected:
    """What expected.npz says, at a quarter of the size, which is quicker."""

    def __init__(self) -> None:
        with np.load(HERE / "expected.npz") as found:
            self._parts = {k: found[k][::4, ::4].astype(np.int16) for k in found.files}

    def look(self, rgb: np.ndarray) -> Look:
        """rgb: uint8 (HEIGHT, WIDTH, 3)."""
        if rgb.shape != (HEIGHT, WIDTH, 3):
            raise ValueError(f"the picture is {rgb.shape[1]}x{rgb.shape[0]}")
        parts, picture = self._parts, rgb[::4, ::4].astype(np.int16)
        person, room = parts["person"] > 0, parts["room"] > 0
        behind = np.abs(picture - parts["background"]).max(2) < 40
        like = ((picture > parts["low"] - 40) & (picture < parts["high"] + 40)).all(2) & ~behind
        r, g, b = picture[..., 0], picture[..., 1], picture[..., 2]
        magenta = (np.minimum(r, b) > 120) & (np.minimum(r, b) - g > 90)
        grey = np.abs(picture - 128).max(2) < 12
        return Look(
            behind[room].mean(), like[person].mean(), behind.mean(), magenta.mean(), grey.mean(), time.monotonic()
        )


def rgb_of(i420: bytes, size: tuple[int, int] = SIZE) -> np.ndarray:
    planes = np.frombuffer(i420, np.uint8).reshape(size[1] * 3 // 2, size[0])
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420))


class Watcher:
    """A reader of the virtual camera that stays, whatever happens, and looks at every picture. By read(): of several
    readers with mapped buffers v4l2loopback 0.12 may forget one."""

    def __init__(self, expected: Expected, size: tuple[int, int] | None = None) -> None:
        """size: of the pictures that are to come, where nobody writes yet."""
        self.looks: list[Look] = []
        if size is None:
            told = command("v4l2-ctl", "-d", VCAM, "--get-fmt-video")[1]
            width, height = re.findall(r"Width/Height\s*: (\d+)/(\d+)", told)[0]
            size = int(width), int(height)
        self.size = size
        self._expected = expected
        self._device = os.open(VCAM, os.O_RDONLY | os.O_NONBLOCK)
        self._ends = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        length = self.size[0] * self.size[1] * 3 // 2
        while not self._ends:
            try:
                data = os.read(self._device, length)
            except OSError:  # no picture yet, or nobody who writes
                time.sleep(0.05)
                continue
            if len(data) < length:
                continue
            rgb = rgb_of(data, self.size)
            self.looks.append(self._expected.look(rgb if self.size == SIZE else cv2.resize(rgb, SIZE)))

    def sees(self, what: Callable[[Look], bool], seconds: float) -> bool:
        """Whether a picture of this kind comes within that time, from now on."""
        seen = len(self.looks)

        def found() -> bool:
            nonlocal seen
            new, seen = self.looks[seen:], len(self.looks)
            return any(map(what, new))

        return until(found, seconds)

    def now(self) -> str:
        return str(self.looks[-1]) if self.looks else "nothing yet"

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        os.close(self._device)
