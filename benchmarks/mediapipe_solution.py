"""MediaPipe's own `solutions.selfie_segmentation` with a plain compositor, as its users write it.

    PYTHON benchmarks/mediapipe_solution.py CLIP --background PICTURE [--seconds 120] [--warm-up 5]
                                            [--compositor where|blend] [--alone]

What `benchmarks.live --mediapipe PYTHON` compares with. PYTHON is an interpreter of its own with mediapipe 0.10.21 (the
last that has the solution), numpy 1.26 and opencv; hence this file imports nothing of rtbg. `benchmarks.live` itself
only takes the small tools from it, so mediapipe is imported on use.

The loop: cv2.VideoCapture gives BGR pictures, the newest of a camera of 30 a second; RGB for the network (landscape
model, as for calls); `where` is the compositor of MediaPipe's own example (np.where of mask > 0.1), `blend` the usual
better one (a mix in float32); BGR to I420 in the end, since that is what virtual cameras take. OpenCV's threads are as
they come. --alone: only the camera, to tell what the decoding of the clip costs.

The last line is one JSON object, with the meanings of `benchmarks.live`. Memory bound: three pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

RATE = 30
BEHIND = 0.5  # seconds: when decoding is later than that, the clip goes on from there instead of catching up
SAMPLES = 12  # of the memory, over a run, beside the first


def rss_mb() -> float | None:
    """Megabytes of memory that this process holds now; None where the system does not tell it as Linux does."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if statm.exists() else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value within which that share of all lies; 0 where there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


class Camera:
    """A clip as a camera: BGR pictures, RATE a second, over and over, decoded ahead by a thread of its own."""

    def __init__(self, clip: str) -> None:
        """Raises ValueError where the clip cannot be read."""
        self._clip = clip
        self._video = cv2.VideoCapture(clip)
        if not self._video.isOpened():
            raise ValueError(f"cannot read {clip}")
        self._changed = threading.Condition()
        self._newest: tuple[Any, float] | None = None
        self._closed = False
        self.dropped = 0  # pictures that a newer one replaced before they were read
        self._thread = threading.Thread(target=self._capture, name="camera")
        self._thread.start()

    def read(self) -> tuple[Any, float]:
        """The newest picture, uint8 (H, W, 3), once, and the time.monotonic() at which it was due. Raises ValueError
        when none comes for five seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._newest is not None, 5):
                raise ValueError(f"{self._clip} gives no more pictures")
            assert self._newest is not None
            newest, self._newest = self._newest, None
            return newest

    def close(self) -> None:
        """Ends the thread and frees the clip."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._video.release()

    def _capture(self) -> None:
        begun = time.monotonic()
        count = 0
        while not self._closed:
            there, picture = self._video.read()
            if not there:
                self._video.release()
                self._video = cv2.VideoCapture(self._clip)
                there, picture = self._video.read()
                if not there:
                    return
            due = begun + count / RATE
            now = time.monotonic()
            if now - due > BEHIND:
                begun, due = begun + now - due, now
            count += 1
            with self._changed:
                self._changed.wait_for(lambda: self._closed, max(0.0, due - now))
                self.dropped += self._newest is not None
                self._newest = picture, due
                self._changed.notify_all()


def watch(clip: str, handle: Callable[[Any], object], seconds: float, warm_up: float) -> dict[str, Any]:
    """Calls `handle` with every picture, and measures for `seconds` once `warm_up` seconds are over."""
    camera = Camera(clip)
    times: list[float] = []
    try:
        handle(camera.read()[0])
        begin = time.monotonic() + warm_up
        while time.monotonic() < begin:
            handle(camera.read()[0])
        dropped, cpu, began = camera.dropped, time.process_time(), time.monotonic()
        memory = [rss_mb()]
        while time.monotonic() < began + seconds:
            picture, due = camera.read()
            handle(picture)
            times.append(time.monotonic() - due)
            if time.monotonic() >= began + len(memory) * seconds / SAMPLES:
                memory.append(rss_mb())
        lasted, cpu, dropped = time.monotonic() - began, time.process_time() - cpu, camera.dropped - dropped
        memory.append(rss_mb())
    finally:
        camera.close()
    times.sort()
    return {
        "seconds": lasted,
        "frames": len(times),
        "fps": len(times) / lasted,
        "cpu_percent": 100 * cpu / lasted,
        "cpu_ms": 1000 * cpu / max(1, len(times)),
        "latency_ms": {f"p{100 * q:.0f}": 1000 * quantile(times, q) for q in (0.5, 0.95, 0.99)},
        "dropped": dropped,
        "dropped_percent": 100 * dropped / max(1, dropped + len(times)),
        "memory_mb": memory,
    }


def solution(background: str, compositor: str) -> tuple[Callable[[Any], object], Callable[[], None]]:
    """(what makes the virtual camera's picture of the camera's, what closes it)."""
    import mediapipe  # type: ignore

    network = mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=1)
    file = cv2.imread(background)
    if file is None:
        raise ValueError(f"cannot read {background}")
    behind = np.zeros((0, 0, 3), np.uint8)

    def handle(picture: Any) -> object:
        nonlocal behind
        if behind.shape != picture.shape:
            behind = np.asarray(cv2.resize(file, picture.shape[1::-1], interpolation=cv2.INTER_AREA))
        mask = network.process(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)).segmentation_mask
        if compositor == "where":
            done = np.where(np.stack((mask,) * 3, axis=-1) > 0.1, picture, behind)
        else:
            share = mask[..., None]
            done = (picture * share + behind * (1 - share)).astype(np.uint8)
        return cv2.cvtColor(done, cv2.COLOR_BGR2YUV_I420)

    return handle, network.close


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("--background", required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--warm-up", type=float, default=5)
    parser.add_argument("--compositor", choices=("where", "blend"), default="where")
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args(argv)
    if args.alone:
        result = watch(args.clip, lambda _picture: None, args.seconds, args.warm_up)
    else:
        handle, close = solution(args.background, args.compositor)
        try:
            result = watch(args.clip, handle, args.seconds, args.warm_up)
        finally:
            close()
        result["engine"] = f"mediapipe {version('mediapipe')}, numpy {np.__version__}, OpenCV {cv2.__version__}"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
