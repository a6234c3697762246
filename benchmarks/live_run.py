"""One live run to be measured, or the clip as a camera by itself: a process of its own for `benchmarks.live`.

    python -m benchmarks.live_run live|camera JSON

JSON: clip, background, model, engine, threads (None: what suits the machine), seconds, warm_up. The last line is one
JSON object, with the meanings of `benchmarks.live`. Memory bound: that of the live mode, and two histograms.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.mediapipe_solution import RATE, SAMPLES, quantile, rss_mb
from rtbg.frame import Frame
from rtbg.options import Options
from rtbg.stats import Latency, Stats, Stop

START = 60.0  # seconds within which the first composite comes


class NullCamera:
    """A virtual camera that is none: does with each picture what `VirtualCamera` does, short of sending it."""

    def __init__(self, width: int, height: int) -> None:
        from rtbg.sinks.virtual_camera import Packed

        self._packed = Packed(width, height)

    def write(self, frame: Frame) -> None:
        """Packs the planes."""
        self._packed.fill(frame.planes)

    def close(self, *, interrupted: bool = False) -> Path | None:
        """Nothing to do."""
        return None

    def cancel(self) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        """Nothing to do."""


def thread_seconds() -> dict[str, float]:
    """CPU seconds so far of each thread that Python knows, by name (Linux; elsewhere empty)."""
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        try:
            text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
        except OSError:  # another system, or the thread has just ended
            continue
        user, system = text[text.rindex(")") + 2 :].split()[11:13]
        found[thread.name] = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return found


@dataclass
class Mark:
    """All counts at one moment."""

    at: float
    cpu: float
    stats: Stats
    latency: Latency
    threads: dict[str, float] = field(default_factory=thread_seconds)


class Watch:
    """Ends the run when it has been measured. `look` is its progress callback."""

    def __init__(self, stop: Stop, seconds: float, warm_up: float) -> None:
        self._stop, self._seconds, self._warm_up = stop, seconds, warm_up
        self._made = time.monotonic()
        self._first = 0.0  # when the first composite had been sent
        self.marks: list[Mark] = []
        self.memory: list[float | None] = []

    def look(self, stats: Stats) -> None:
        """Takes a mark at the beginning and at the end of what is measured, and the memory in between."""
        now = time.monotonic()
        if not self._first:
            if stats.frames_out:
                self._first = now
            elif now - self._made > START:
                self._stop.end()
        elif not self.marks and now - self._first >= self._warm_up:
            self._mark(stats)
            self.memory.append(rss_mb())
        elif len(self.marks) == 1:
            since = now - self.marks[0].at
            if since >= len(self.memory) * self._seconds / SAMPLES:
                self.memory.append(rss_mb())
            if since >= self._seconds:
                self._mark(stats)
                self._stop.end()

    def _mark(self, stats: Stats) -> None:
        assert stats.latency is not None
        kept = copy.copy(stats)
        kept.stages = dict(stats.stages)
        self.marks.append(Mark(time.monotonic(), time.process_time(), kept, copy.deepcopy(stats.latency)))


def between(before: Latency, after: Latency) -> list[float]:
    """The seconds that were taken in between the two, ordered."""
    pairs = zip(before._counts, after._counts, strict=True)
    return [k * Latency.STEP for k, (a, b) in enumerate(pairs) for _ in range(b - a)]


def live(job: dict[str, Any]) -> dict[str, Any]:
    """One run of rtbg in this process. Raises RuntimeError when no picture comes through."""
    import cv2

    from rtbg.backdrop import Backdrop
    from rtbg.clock import Output
    from rtbg.composite import Compositor
    from rtbg.control import Control
    from rtbg.foreground import Foreground
    from rtbg.live import run_live
    from rtbg.sources.paced import PacedSource
    from rtbg.webcam import matting_factory

    sys.setswitchinterval(0.0005)  # both as the command line does
    cv2.setNumThreads(1)
    options = Options(model=job["model"], engine=job["engine"], threads=job["threads"])
    stop = Stop()
    control = Control(quit=stop.end)
    source = PacedSource(job["clip"], rate=RATE)
    info = source.info
    watch = Watch(stop, job["seconds"], job["warm_up"])
    stats = run_live(
        source,
        matting_factory(options, info),
        Backdrop([job["background"]], info, fit=options.fit, control=control),
        [Output(NullCamera(info.width, info.height))],
        compositor=Compositor(show=options.show, foreground=Foreground(wrap=options.light_wrap)),
        control=control,
        stop=stop,
        progress=watch.look,
    )
    if len(watch.marks) < 2:
        raise RuntimeError(f"the run did not last: {stats.trouble or 'no picture came through'}")
    return _difference(*watch.marks) | {"memory_mb": watch.memory, "engine": stats.engine}


def _difference(a: Mark, b: Mark) -> dict[str, Any]:
    """What happened from one mark to the other."""
    seconds, cpu = b.at - a.at, b.cpu - a.cpu
    sent, dropped = b.stats.frames_out - a.stats.frames_out, b.stats.dropped - a.stats.dropped
    latency = between(a.latency, b.latency)
    threads = {name: used - a.threads.get(name, 0.0) for name, used in b.threads.items()}
    if threads:
        threads["other"] = max(0.0, cpu - sum(threads.values()))
    stages = {name: used - a.stats.stages.get(name, 0.0) for name, used in b.stats.stages.items()}
    return {
        "seconds": seconds,
        "frames": sent,
        "fps": sent / seconds,
        "cpu_percent": 100 * cpu / seconds,
        "cpu_ms": 1000 * cpu / max(1, sent),
        "latency_ms": {f"p{100 * q:.0f}": 1000 * quantile(latency, q) for q in (0.5, 0.95, 0.99)},
        "dropped": dropped,
        "dropped_percent": 100 * dropped / max(1, dropped + sent),
        "reused": b.stats.reused - a.stats.reused,
        "filled": b.stats.filled - a.stats.filled,
        "covered": b.stats.covered - a.stats.covered,
        "stage_ms": {name: 1000 * used / max(1, sent) for name, used in stages.items() if name != "read"},
        "thread_cpu_percent": {name: 100 * used / seconds for name, used in threads.items()},
    }


def camera_alone(job: dict[str, Any]) -> dict[str, Any]:
    """What the clip as a camera costs by itself, in this process."""
    import cv2

    from rtbg.sources.paced import PacedSource

    sys.setswitchinterval(0.0005)
    cv2.setNumThreads(1)
    source = PacedSource(job["clip"], rate=RATE)
    try:
        source.read()
        begin = time.monotonic() + job["warm_up"]
        while time.monotonic() < begin:
            source.read()
        cpu, began = time.process_time(), time.monotonic()
        while time.monotonic() < began + job["seconds"]:
            source.read()
        return {"cpu_percent": 100 * (time.process_time() - cpu) / (time.monotonic() - began)}
    finally:
        source.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    kind, job = sys.argv[1:] if argv is None else argv
    print(json.dumps({"live": live, "camera": camera_alone}[kind](json.loads(job))))


if __name__ == "__main__":
    main()
