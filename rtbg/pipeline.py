"""The whole flow. Read this file first.

    reader thread         matting thread                   compositing thread               one thread per sink
    source.read ──Link──▶ matting.push ──Link──▶ background.at ─▶ compositor ──Link──▶ sink.write, sink.close
                    small RGB, engine,                            foreground colours,
                   smoothing, upsampling                          blending

Where the engine is on a GPU that does all of that (`rtbg.gpu_frames`), one thread stands in for the two in the middle:

    source.read ──Link──▶ background.at ─▶ frames.push: all of it there ──Link──▶ sink.write, sink.close

- A frame leaves with its own matte, never an older one: they travel as a pair.
- End of stream (also the first Ctrl-C, `Stop.end`) closes each link in turn; every stage drains, files get
  their trailers.
- An error in any stage, or `Stop.abort`, aborts every link: all threads end, sinks drop what they have
  (an older output file stays untouched), and `run` raises the first error.

Memory bound: `QUEUE` frames on each link and what a codec holds back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from rtbg.composite import Compositor
from rtbg.errors import Aborted
from rtbg.frame import Frame
from rtbg.gpu_frames import GpuFrames
from rtbg.link import Link, LinkAborted
from rtbg.matting import Matting
from rtbg.protocols import Background, Sink, Source
from rtbg.stats import Stats, Stop

QUEUE = 4  # frames between two stages: enough to even out the encoder's uneven pace


def run(
    source: Source,
    matting: Matting,
    background: Background,
    sinks: Sequence[Sink],
    *,
    compositor: Compositor | None = None,
    frames: GpuFrames | None = None,
    stop: Stop | None = None,
    progress: Callable[[Stats], None] | None = None,
) -> Stats:
    """Takes every frame from source to sinks; returns when all outputs are whole.

    Owns source, background, frames and sinks: they are closed (or aborted) whatever happens. The matting's engine
    stays the caller's. compositor: None: `Compositor()`. frames: does the work of matting and compositor in their
    place, with the same engine; it blurs by itself, other backgrounds do not look at the matte. progress is called
    about ten times a second, on the caller's thread.
    Raises what the first failing stage raised, or Aborted.
    """
    return _Run(source, matting, background, sinks, compositor or Compositor(), frames, stop or Stop()).run(progress)


class _Run:
    """The threads and links of one run."""

    def __init__(
        self,
        source: Source,
        matting: Matting,
        background: Background,
        sinks: Sequence[Sink],
        compositor: Compositor,
        frames: GpuFrames | None,
        stop: Stop,
    ) -> None:
        self.source, self.matting, self.background, self.sinks = source, matting, background, sinks
        self.stop = stop
        self.compositor, self.frames = compositor, frames
        self.stats = Stats(engine=self._device)
        self.started = time.monotonic()
        live = source.live
        self.read: Link[Frame] = Link(1 if live else QUEUE, live=live)
        self.matted: Link[tuple[Frame, Matting.Alpha]] = Link(1 if live else QUEUE // 2, live=live)
        self.made: list[Link[Frame]] = [Link(1 if live else QUEUE, live=live) for _ in sinks]
        self.lock = threading.Lock()
        self.error: BaseException | None = None
        self.finished = 0  # sinks that are closed

    def run(self, progress: Callable[[Stats], None] | None) -> Stats:
        stages = [(self._reader, "rtbg-reader")]
        if self.frames is not None:
            stages.append((self._framer, "rtbg-gpu"))
        else:
            stages += [(self._matter, "rtbg-matting"), (self._worker, "rtbg-compositing")]
        threads = [threading.Thread(target=self._guard, args=(stage,), name=name) for stage, name in stages]
        for i, (sink, link) in enumerate(zip(self.sinks, self.made, strict=True)):
            threads.append(threading.Thread(target=self._guard, args=(self._writer, sink, link), name=f"rtbg-sink-{i}"))
        with ExitStack() as stack:
            stack.callback(self.source.close)
            stack.callback(self.background.close)
            if self.frames is not None:
                stack.callback(self.frames.close)
            for sink in self.sinks:
                stack.callback(sink.abort)  # nothing to do for one that was closed
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.1)
                        self._watch(progress)
            except BaseException as exc:  # KeyboardInterrupt, or the progress callback failed
                self._fail(exc)
            self._join(threads)
        self.stats.dropped = self.read.dropped + self.matted.dropped + sum(link.dropped for link in self.made)
        if self.error is not None and not (isinstance(self.error, Aborted) and self.finished == len(self.sinks)):
            raise self.error  # an abort that came when everything was written is none
        return self.stats

    def _join(self, threads: list[threading.Thread]) -> None:
        """Waits for every thread, whatever else happens: none may outlive what it works on."""
        for thread in threads:
            while thread.ident is not None and thread.is_alive():
                try:
                    thread.join()
                except BaseException as exc:  # another Ctrl-C
                    self._fail(exc)

    def _watch(self, progress: Callable[[Stats], None] | None) -> None:
        self.stats.seconds = time.monotonic() - self.started
        self.stats.engine = self._device  # another one may have taken over
        if self.stop.aborted:
            self._fail(Aborted("aborted"))
        if progress is not None:
            progress(self.stats)

    @property
    def _device(self) -> str:
        """What really computes, for people."""
        return self.matting.engine.device + (", frames by torch" if self.frames is not None else "")

    def _guard(self, stage: Callable[..., None], *args: object) -> None:
        """Runs a stage on its thread; the first error of all stages is kept and ends the run."""
        try:
            stage(*args)
        except LinkAborted:
            pass
        except BaseException as exc:
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        with self.lock:
            if self.error is None:
                self.error = exc
        self.read.abort()
        self.matted.abort()
        for link in self.made:
            link.abort()
        for sink in self.sinks:
            sink.cancel()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Adds the time of its body to the stage's sum. Each stage belongs to one thread."""
        began = time.perf_counter()
        yield
        self.stats.stages[stage] = self.stats.stages.get(stage, 0.0) + time.perf_counter() - began

    def _reader(self) -> None:
        while not self.stop.ended:
            with self._timed("read"):
                frame = self.source.read()
            if frame is None:
                break
            self.stats.frames_in += 1
            self.stats.share = getattr(self.source, "share", None)
            self.read.put(frame)
        else:
            self.stats.interrupted = True
            if not self.stats.frames_in:
                raise Aborted("interrupted before the first picture")
        self.read.close()

    def _matter(self) -> None:
        while (frame := self.read.get()) is not None:
            with self._timed("matting"):
                pairs = self.matting.push(frame)
            for pair in pairs:
                self.matted.put(pair)
        with self._timed("matting"):
            pairs = self.matting.flush()
        for pair in pairs:
            self.matted.put(pair)
        self.matted.close()

    def _worker(self) -> None:
        while (pair := self.matted.get()) is not None:
            frame, alpha = pair
            with self._timed("background"):
                planes = self.background.at(frame, alpha)
            with self._timed("composite"):
                done = self.compositor(frame, alpha, planes)
            self._hand_on([done])
        for link in self.made:
            link.close()

    def _framer(self) -> None:
        """Does what `_matter` and `_worker` do, by way of `frames`."""
        frames = self.frames
        assert frames is not None
        nobody = np.zeros((self.source.info.height, self.source.info.width), np.uint8)
        while (frame := self.read.get()) is not None:
            with self._timed("background"):
                planes = self.background.at(frame, nobody) if frames.needs_background else None
            with self._timed("gpu"):
                done = frames.push(frame, planes)
            self._hand_on(done)
        with self._timed("gpu"):
            done = frames.flush()
        self._hand_on(done)
        for link in self.made:
            link.close()

    def _hand_on(self, frames: Sequence[Frame]) -> None:
        """To every sink."""
        for frame in frames:
            for link in self.made:
                link.put(frame)
            self.stats.frames_out += 1

    def _writer(self, sink: Sink, link: Link[Frame]) -> None:
        name = type(sink).__name__
        while (frame := link.get()) is not None:
            with self._timed(name):
                sink.write(frame)
        with self._timed(name):
            output = sink.close(interrupted=self.stats.interrupted)
        with self.lock:
            self.finished += 1
            if output is not None:
                self.stats.outputs.append(output)
