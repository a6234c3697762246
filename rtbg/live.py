"""The flow of a live run: a camera's pictures to a virtual camera, and never the real room.

    reader thread         matting thread                                                   one thread per sink
    source.read ─Link(1)─▶ still gate ─▶ matting.push ─▶ backdrop.at ─▶ compositor ─Link(1)─▶ clock ─▶ sink.write
                  newest     │ nothing changed: the composite before, whole ──────────▲        │ fills gaps: the last
                  picture                                                                      │ composite, the card

Fail closed: what reaches a sink is made in one of two places only, the compositor, from a picture and the matte of that
very picture, and `rtbg.clock.Cover`, from no camera picture at all. The sinks' clocks (`rtbg.clock`) are independent of
all the rest: while the model loads, an engine raises, hangs or answers nonsense, a background fails or the camera is
gone, they send the card at the full rate, so a call's track never ends. When all is well again, so are they.

- A clocked sink (virtual camera, preview) gets pictures as they arrive. A gap of more than 1.5 intervals is filled with
  the last composite, for at most `patience` (0.5 s) and not once a stage has reported trouble; then by `on_failure`.
- A sink without a clock (recorder) gets the pictures as they come, at their own times, with one covering picture when
  trouble begins; two seconds of pictures wait while it is slow, then the oldest go. It never holds up the camera.
- A picture that is older than `patience` when it is finished, such as the late answer of a hung engine, never leaves.
- Ending (`Stop.end`, the source's end, a required sink's failure): recordings are completed, clocked sinks get the card
  as their last picture. A recorder that fails keeps what it has (`rtbg.sinks.salvage`). Only `Stop.abort` (and an error
  on the caller's thread) drops what was recorded.
- A thread that does not come back (a hung engine or driver) is left behind after `LEAVE` seconds, with a warning, and
  what it works on is not closed under it.

Memory bound: one picture on its way in, the last composite, and what `rtbg.clock` says of each sink.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rtbg.clock import Cover, Outlet, Output
from rtbg.composer import Composer, LiveBackground, Swap, reason
from rtbg.composite import Compositor
from rtbg.control import Control
from rtbg.errors import Aborted, MattingError, NoPicture, RtbgError
from rtbg.frame import Frame
from rtbg.link import Link, LinkAborted, LinkClosed
from rtbg.matting import Matting
from rtbg.protocols import Source
from rtbg.stats import Stats, Stop

__all__ = ["LiveBackground", "Output", "Swap", "run_live"]

_log = logging.getLogger("rtbg")

PATIENCE = 0.5  # seconds
LEAVE = 3.0  # seconds that a thread has to come back once the run is over
HUNG = 2.0  # the same where the engine hangs anyway: the reader, which may be in a read of one second, comes back
TOLD = 0.3  # seconds for which a recorder may complete its file before that is said
PREPARED = 20.0  # seconds after which it is said that the network is still being prepared
SILENT = 3.0  # seconds after which a read is said to hang: a source answers within one
GRACE = 0.5  # seconds that the picture under way has to come through once the run is over


def run_live(
    source: Source,
    open_matting: Callable[[], Matting],
    backdrop: LiveBackground,
    outputs: Sequence[Output],
    *,
    compositor: Compositor | None = None,
    on_failure: str = "card",
    control: Control | None = None,
    stop: Stop | None = None,
    progress: Callable[[Stats], None] | None = None,
    wait: Callable[[float], object] | None = None,
    swap: Swap | None = None,
    patience: float = PATIENCE,
    reuse: bool = True,
    completing: Callable[[], None] | None = None,
) -> Stats:
    """Sends the source's pictures to all outputs until the source ends, `stop` says so, or a required output fails.

    Owns source, backdrop, the sinks, and the engine of every matting that it opens or is given: closes them all.
    source: live, in 8-bit planes of `source.info`; a picture of another size or format is trouble, not sent.
    open_matting: makes a matting without look-ahead; called on the matting thread, at the start and again when the
        engine has failed several times in a row. Its error ends the run the first time, and is trouble later.
    backdrop: see `LiveBackground`. Its `card` is asked for on the caller's thread before anything starts, and all of
        it then only on the matting thread. Where `at` gives None (transparent), black.
    outputs: the first clocked one (else the first) is the one that the statistics speak of. See `Output`.
    compositor: None: `Compositor()`. `control.matte` shows the matte in its place.
    on_failure: what clocked sinks show while something is wrong: "card"; "freeze", the last composite for as long as
        it lasts (the card where there is none); "black". While it only starts, it is the card in any case.
    control: None: `Control(quit=stop.end)`. progress: called about ten times a second, on the caller's thread.
    wait: what that thread does between, until every sink is closed: called with the seconds, 0.1, and may come back
        sooner (`Preview.pump`); None: it sleeps.
    swap: see `Swap`; None: the matting stays.
    patience: seconds; how old a picture may be when it leaves, and for how long the last one may stand in for it.
    reuse: False infers every picture, also where nothing has changed.
    completing: called once, on the caller's thread, when the run is over and a recorder still works.
    Returns the statistics: `trouble` is what is wrong at the moment, `lost` the outputs that failed meanwhile. Pictures
    that the source left out by itself (its `dropped`) count as come and dropped, but those before the engine was open.
    Raises what the first failing stage raised (each is a reason that no picture can come), or Aborted, whose message
    tells what became of the recording.
    """
    stop = stop or Stop()
    control = control or Control(quit=stop.end)
    with ExitStack() as stack:
        for close in (source.close, backdrop.close, *(output.sink.abort for output in outputs)):
            stack.callback(close)
        cover = Cover(backdrop.card(), source.info, on_failure=on_failure, patience=patience)
        outlets = [Outlet(output, cover, control, source.info) for output in outputs]
        composer = Composer(open_matting, backdrop, compositor or Compositor(), cover, control, swap or Swap(), reuse)
        run = _Run(source, composer, outlets, cover, stop)
        stack.pop_all()  # from here on the run closes them
    return run.run(progress, wait, completing)


class _Run:
    """The threads and links of one run."""

    def __init__(self, source: Source, composer: Composer, outlets: list[Outlet], cover: Cover, stop: Stop) -> None:
        self.source, self.composer, self.outlets, self.cover, self.stop = source, composer, outlets, cover, stop
        self.shown = next((o for o in outlets if o.clocked), outlets[0])  # of whom the statistics speak
        self.stats = Stats(latency=self.shown.latency)
        self.started, self.cpu_started = time.perf_counter(), time.process_time()
        self.told = 0.0  # when progress was last called
        self.read: Link[Frame] = Link(1, live=True)
        self.taken = 0  # pictures that were read
        # Pictures that went by while the engine was being opened, nobody was to see them: of the link, of the source.
        self.excused: tuple[int, int] | None = None
        self.reading = 0.0  # since when the source is being read; 0: it is not
        self.read_seconds = 0.0
        self.lock = threading.Lock()
        self.error: BaseException | None = None
        self.over = threading.Event()
        self.over_at = self.cpu_over = 0.0
        self.aborted = False

    def run(
        self,
        progress: Callable[[Stats], None] | None,
        wait: Callable[[float], object] | None,
        completing: Callable[[], None] | None,
    ) -> Stats:
        reader = threading.Thread(target=self._guard, args=(self._reader,), name="rtbg-reader", daemon=True)
        matting = threading.Thread(target=self._guard, args=(self._matting,), name="rtbg-matting", daemon=True)
        writers = [
            threading.Thread(target=self._guard, args=(self._writer, o), name=f"rtbg-sink-{k}", daemon=True)
            for k, o in enumerate(self.outlets)
        ]
        threads = [*writers, matting, reader]
        recorders = [t for t, o in zip(writers, self.outlets, strict=True) if not o.clocked]
        try:
            for thread in threads:
                thread.start()
            while (alive := [t for t in threads if t.is_alive()]) and not self._left(alive, recorders):
                (alive[0].join if wait is None else wait)(0.1)
                self._watch(progress, reader.is_alive())
                if completing is not None and self._completes(alive, recorders):
                    completing()
                    completing = None
        except BaseException as exc:  # KeyboardInterrupt, or the progress callback failed
            self._abort(exc)
            self._await(threads)
        self._free(reader, matting, writers)
        self._count()
        if isinstance(self.error, Aborted):
            raise Aborted(self._kept(bool(recorders))) from self.error
        if self.error is not None:
            raise self.error
        if missing := sum(o.link.dropped for o in self.outlets if not (o.clocked or o.lost)):
            lacks = f"the recording lacks {missing} picture{'s' if missing > 1 else ''}"
            _log.warning("%s: disk or encoder is too slow (try --preset veryfast)", lacks)
        return self.stats

    def _kept(self, recorded: bool) -> str:
        """What is left of an aborted run."""
        if self.stats.outputs:
            return f"aborted; {', '.join(str(p) for p in self.stats.outputs)} is whole"
        return "nothing was recorded" if recorded else "aborted"

    def _completes(self, alive: list[threading.Thread], recorders: list[threading.Thread]) -> bool:
        """Whether the run is over but for a recorder, for so long that somebody may wonder."""
        late = self.over.is_set() and not self.aborted and time.perf_counter() - self.over_at > TOLD
        return late and any(t in recorders for t in alive)

    def _left(self, alive: list[threading.Thread], recorders: list[threading.Thread]) -> bool:
        """Whether those that still live are to be left behind. A recorder that completes its file is waited for."""
        if not self.over.is_set() or time.perf_counter() - self.over_at < (HUNG if self._hung else LEAVE):
            return False
        return self.aborted or not any(t in recorders for t in alive)

    def _await(self, threads: list[threading.Thread]) -> None:
        """Gives every thread its time to come back, whatever else happens."""
        until = time.perf_counter() + LEAVE
        for thread in threads:
            while thread.ident is not None and thread.is_alive() and (rest := until - time.perf_counter()) > 0:
                try:
                    thread.join(rest)
                except BaseException as exc:  # another Ctrl-C
                    self._abort(exc)

    def _free(self, reader: threading.Thread, matting: threading.Thread, writers: list[threading.Thread]) -> None:
        """Closes everything that no thread is left in."""
        for thread in (reader, matting, *writers):
            if thread.is_alive():
                what = self.composer.stage if thread is matting else ""
                _log.warning("%s does not answer%s: it was left behind", thread.name, f" ({what})" if what else "")
        for outlet, thread in zip(self.outlets, writers, strict=True):
            if not thread.is_alive():
                outlet.sink.abort()  # nothing to do for one that was closed
        if matting.is_alive():
            self.composer.retire()  # its engine is closed by the thread itself, should it come back
        else:
            self.composer.close()
        if not reader.is_alive():
            self.source.close()

    def _watch(self, progress: Callable[[Stats], None] | None, reading: bool) -> None:
        now = time.perf_counter()
        if self.stop.aborted:
            self._abort(Aborted("aborted"))
        elif self.stop.ended:
            self._end()
        if stage := self._hung:
            since = now - self.composer.since
            self.cover.report("matting", f"the {stage} has not answered for {since:.0f} s")
            if not reading:
                self._end()  # the source has ended, and nothing more will come
        began = self.composer.opening  # once, as below
        if began and now - began > PREPARED:
            self.cover.report("matting", f"the network is still being prepared after {now - began:.0f} s")
        began = self.reading  # once: the reader sets it to 0 at any moment
        if began and now - began > SILENT:
            self.cover.report("camera", f"the camera's driver has not answered for {now - began:.0f} s")
        if self.over.is_set() and now - self.over_at > GRACE:
            for outlet in self.outlets:
                outlet.link.close()
        self._count()
        if progress is not None and now - self.told > 0.09:
            self.told = now
            progress(self.stats)

    @property
    def _hung(self) -> str:
        """The step in which the matting thread has been for too long; empty: none. Loading an engine is none."""
        stage = self.composer.stage
        return stage if time.perf_counter() - self.composer.since > 2 * self.cover.patience else ""

    def _count(self) -> None:
        stats, shown, composer = self.stats, self.shown, self.composer
        over = self.over.is_set()  # what a recorder does then is not the run's
        stats.seconds = (self.over_at if over else time.perf_counter()) - self.started
        stats.cpu_seconds = (self.cpu_over if over else time.process_time()) - self.cpu_started
        left_out = getattr(self.source, "dropped", 0)
        link, before = self.excused or (self.read.dropped, left_out)
        stats.frames_in = self.taken + left_out - before
        stats.engine, stats.reused, stats.trouble = composer.device, composer.reused, self.cover.trouble
        stats.frames_out, stats.filled, stats.covered = shown.sent, shown.filled, shown.covered
        stats.dropped = self.read.dropped - link + left_out - before
        stats.dropped += composer.failed + composer.late + shown.late + shown.link.dropped
        stats.stages = {"read": self.read_seconds, **composer.stages}
        for outlet in self.outlets:
            name = type(outlet.sink).__name__
            stats.stages[name] = stats.stages.get(name, 0.0) + outlet.seconds

    def _guard(self, stage: Callable[..., None], *args: object) -> None:
        """Runs a stage on its thread; the first error of all stages is kept and ends the run."""
        try:
            stage(*args)
        except (LinkAborted, LinkClosed):
            pass
        except BaseException as exc:
            self._end(exc)

    def _end(self, exc: BaseException | None = None) -> None:
        """The run is over: what was recorded is completed."""
        with self.lock:
            self.error = self.error or exc
            if not self.over.is_set():
                self.over_at, self.cpu_over = time.perf_counter(), time.process_time()
                self.over.set()
        self.read.abort()

    def _abort(self, exc: BaseException) -> None:
        """The run is over, now."""
        self._end(exc)
        self.aborted = True
        for outlet in self.outlets:
            outlet.link.abort()
            outlet.sink.cancel()

    def _reader(self) -> None:
        while not self.over.is_set():
            self.reading = began = time.perf_counter()
            try:
                frame = self.source.read()
            except NoPicture as exc:
                self.cover.report("camera", str(exc))
                self.over.wait(0.05)  # one that knows at once that there is none answers at once
                continue
            finally:
                self.reading = 0.0
                self.read_seconds += time.perf_counter() - began
            if frame is None:
                break
            if not self.taken:
                self.cover.origin = frame.captured - frame.seconds
            self.taken += 1
            self.cover.clear("camera")
            self.read.put(frame)
        self.read.close()

    def _matting(self) -> None:
        composer = self.composer
        try:
            try:
                composer.open()
            except Exception as exc:
                if isinstance(exc, RtbgError):
                    raise
                raise MattingError(f"the network cannot be opened: {reason(exc)}") from exc
            self.excused = self.read.dropped, getattr(self.source, "dropped", 0)
            while True:
                try:
                    frame = self.read.get(0.25)
                except TimeoutError:
                    composer.idle()
                    continue
                if frame is None:
                    break
                for done in composer.frame(frame):
                    for outlet in self.outlets:
                        outlet.give(done)
                if composer.pause:
                    self.over.wait(composer.pause)
        finally:
            for outlet in self.outlets:
                outlet.link.close()
            composer.close()

    def _writer(self, outlet: Outlet) -> None:
        try:
            path = outlet.run(self.stop)
        except (KeyboardInterrupt, LinkAborted, SystemExit):
            raise
        except BaseException as exc:
            self._lost(outlet, exc)
        else:
            if path is not None:
                with self.lock:
                    self.stats.outputs.append(path)

    def _lost(self, outlet: Outlet, exc: BaseException) -> None:
        """A sink failed: the run ends unless it can do without."""
        outlet.link.abort()
        with self.lock:
            outlet.lost = True
            alone = self.aborted or outlet.required or all(o.lost for o in self.outlets)
            if not alone:
                self.stats.lost.append(reason(exc))
        if alone:
            raise exc
        outlet.sink.abort()
        _log.warning("%s%s", reason(exc), "" if self.over.is_set() else ": the rest goes on")
