"""From a runner that works at once to a faster one that first has to be compiled, between two pictures.

    run(feeds) ── first.run ─────────────────────────────── first.run, live check ── second.run ──▶
        └ thread rtbg-engine: compile apart ─ open ─ portrait check ─┘

The second is taken only if it answers as the first does, to a stored portrait and to the live picture of that moment;
else that is said and the first stays. What a network remembers travels in its inputs (`engines.adapter`), so nothing of
it is lost. Used by `engines.load` for TensorRT.
Memory bound: both runners for good: the first takes over again, with a warning, where the second fails later or
answers what is of no use (frames that stay on a GPU are not looked at: `engines.on_device`).
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from engines import tensorrt_engine as trt
from engines.compile_job import compile_apart, make_job
from engines.cuda import NoGpu, import_runtime, probe
from engines.errors import EngineError, short_reason
from engines.int8 import eight_bits
from engines.plan_cache import PlanCache, user_cache
from engines.runner import Runner
from engines.segmenter import probe_picture
from engines.signature import recognise
from engines.spec import Array, ModelSpec, available_models, find_model

logger = logging.getLogger("engines")

# Mean absolute difference of the mattes up to which two engines count as one.
TOLERANCE = 0.02

# Compiles and opens a runner for these shapes; asks now and then whether it is still wanted. Raises EngineError.
Opener: TypeAlias = Callable[[trt.Shapes, Callable[[], bool]], Runner]


class Swapping:
    """Implements `engines.runner.Runner`: `first`, until what `opener` makes is ready and passes its checks, for each
    set of input shapes on its own. `name` and `device` are those of what ran last. Owns `first`."""

    def __init__(self, first: Runner, opener: Opener) -> None:
        self.inputs, self.outputs = first.inputs, first.outputs
        self.name, self.device = first.name, first.device
        self.first = first
        self._opener = opener
        self._next: dict[tuple[tuple[int, ...], ...], _Next] = {}
        self._closed = False
        # A process that ends without `close` must not be held up by a compilation, nor leave its thread in TensorRT.
        atexit.register(self.close)

    def current(self, *shapes: tuple[int, ...]) -> Runner:
        """The runner that the next `run` with inputs of these shapes is done by."""
        coming = self._next.get(shapes)
        return self.first if coming is None or coming.taken is None else coming.taken

    def due(self, *shapes: tuple[int, ...]) -> bool:
        """Whether that `run` begins to get a second runner ready, or compares one that is."""
        coming = self._next.get(shapes)
        return coming is None or coming.ready

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """See `engines.runner.Runner.run`."""
        if self._closed:
            raise EngineError("this engine is closed: load the model again")
        shapes = tuple(tuple(feeds[port.name].shape) for port in self.inputs)
        coming = self._next.get(shapes)
        if coming is None:
            coming = self._next[shapes] = self._begin(feeds, wanted)
        # A network's own memory may lie in the results of the runner before, which the first of two runs overwrites.
        kept = feeds
        if len(self.inputs) > 1 and (coming.taken is not None or coming.ready):
            kept = {name: np.array(value) for name, value in feeds.items()}
        if coming.taken is not None:
            try:
                out = self._run(coming.taken, feeds, wanted)
                coming.check(out)
                return out
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as exc:  # whatever it is: the first can go on. Some extensions raise beside Exception.
                self.leave(shapes, exc)
                coming.close()
        out = self._run(self.first, kept, wanted)
        coming.offer(kept, wanted, out, self.first.device)
        return out

    def leave(self, shapes: tuple[tuple[int, ...], ...], reason: BaseException) -> bool:
        """Has the first runner take over again from the second, which failed, and says so; False where there is no
        second. The second is freed by `close` at the latest: its work may still be under way."""
        coming = self._next.get(shapes)
        if coming is None or coming.taken is None:
            return False
        coming.left, coming.taken = coming.taken, None
        self.name, self.device = self.first.name, self.first.device
        logger.warning("%s takes over again: %s", self.device, _said(reason))
        return True

    def close(self) -> None:
        """See `engines.runner.Runner.close`. A compilation under way is ended."""
        self._closed = True
        atexit.unregister(self.close)
        for coming in self._next.values():
            coming.cancel()
        for coming in self._next.values():
            coming.close()
        self.first.close()

    def _run(self, runner: Runner, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        out = runner.run(feeds, wanted)
        self.name, self.device = runner.name, runner.device
        return out

    def _begin(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> _Next:
        """Starts to get a second runner ready for these shapes."""
        first = self.inputs[0].name
        portrait = {name: np.array(value) for name, value in feeds.items()}
        shape = feeds[first].shape
        if len(self.inputs) == 1 and len(shape) == 4 and shape[1] == 4:
            portrait = {first: probe_picture(shape[3], shape[2])}
        # Of other people's networks the first picture is kept: a segmenter's is that portrait, as it takes it.
        answers = [answer.copy() for answer in self.first.run(portrait, wanted)]
        return _Next(self._opener, portrait, wanted[:1], answers)


class _Next:
    """The second runner for one set of shapes: on its way, offered, taken, or given up."""

    def __init__(self, opener: Opener, portrait: dict[str, Array], wanted: Sequence[str], answers: list[Array]) -> None:
        self.taken: Runner | None = None
        self._kinds = [(a.shape, a.dtype) for a in answers]
        self.left: Runner | None = None  # was taken, and failed
        self._ready: Runner | None = None  # set by the thread, when it has passed the portrait
        self._cancelled = threading.Event()
        args = (opener, portrait, list(wanted), answers[0])
        # A daemon: a program's end must not wait for a compilation; `Swapping.close` joins it before that.
        self._thread = threading.Thread(target=self._prepare, args=args, name="rtbg-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether it waits to be taken by `offer`."""
        return self._ready is not None

    def offer(self, feeds: Mapping[str, Array], wanted: Sequence[str], out: list[Array], device: str) -> None:
        """Takes the second runner, if it is ready and answers these feeds as `device` did; from the next picture on."""
        ready, self._ready = self._ready, None
        if ready is None:
            return
        try:
            apart = difference(ready.run(feeds, wanted[:1])[0], out[0])
            if not apart <= TOLERANCE:
                raise EngineError(f"its matte of the live picture differs by {apart:.3f}, more than {TOLERANCE}")
        except BaseException as exc:  # as in `Swapping.run`
            ready.close()
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise
            logger.warning("%s goes on, %s is not taken: %s", device, ready.device, _said(exc))
            return
        self.taken = ready
        logger.info("%s runs the network from here on, before it was %s", ready.device, device)

    def check(self, out: list[Array]) -> None:
        """Raises EngineError for what the second runner must not answer: other shapes or kinds of number than the
        first, or what is no number. That a value is out of range is for those to tell who know what it means."""
        for answer, (shape, dtype) in zip(out, self._kinds, strict=True):
            if (answer.shape, answer.dtype) != (shape, dtype):
                raise EngineError(f"it answered {answer.dtype} {answer.shape} in place of {dtype} {shape}")
            if not np.isfinite(answer).all():
                raise EngineError("it answered what is no number")

    def cancel(self) -> None:
        """Ends what is under way, soon."""
        self._cancelled.set()

    def close(self) -> None:
        """Ends what is under way and closes the second runner. May be called twice."""
        self.cancel()
        self._thread.join()
        for runner in (self._ready, self.taken, self.left):
            if runner is not None:
                runner.close()
        self._ready = self.taken = self.left = None

    def _prepare(self, opener: Opener, portrait: dict[str, Array], wanted: list[str], answer: Array) -> None:
        runner: Runner | None = None
        try:
            shapes = {name: tuple(value.shape) for name, value in portrait.items()}
            runner = opener(shapes, self._cancelled.is_set)
            apart = difference(runner.run(portrait, wanted)[0], answer)
            if not apart <= TOLERANCE:
                raise EngineError(f"its matte of the test portrait differs by {apart:.3f}, more than {TOLERANCE}")
        except BaseException as exc:  # as in `Swapping.run`; and here nobody else would tell of it
            if not self._cancelled.is_set():
                what = "the compiled network" if runner is None else runner.device
                logger.warning("%s is not taken: %s", what, _said(exc))
            if runner is not None:
                runner.close()
            return
        self._ready = runner


def _said(exc: BaseException) -> str:
    """One line of why a runner failed."""
    return str(exc) if isinstance(exc, EngineError) else short_reason(exc)


def difference(one: Array, other: Array) -> float:
    """Mean absolute difference; infinite for other shapes, not a number where one holds such."""
    if one.shape != other.shape:
        return float("inf")
    return float(np.mean(np.abs(one.astype(np.float32) - other.astype(np.float32))))


def with_tensorrt(first: Runner, spec: ModelSpec, precision: str) -> Runner:
    """`first`, to be followed by TensorRT when that has compiled. `first` itself where there is no NVIDIA GPU, and,
    with the reason as information, where there is one and the driver, TensorRT or a cache folder is missing."""
    try:
        probe()
    except NoGpu as exc:
        if exc.driver:
            logger.info("%s runs the network: %s", first.device, exc)
        return first
    try:
        target, graphs, cache = trt.find_target(strict=True), trt.Graphs(spec, precision), _plans()
        import_runtime()  # or minutes of compiling would be for nothing
    except EngineError as exc:
        logger.info("%s runs without TensorRT: %s", first.device, exc)
        return first

    def opener(shapes: trt.Shapes, cancelled: Callable[[], bool]) -> Runner:
        if cache.load(graphs.key(target, shapes)) is None:
            logger.info("TensorRT compiles the network apart, %s runs meanwhile", first.device)
            compile_apart(make_job(graphs, target, shapes, cache), cancelled=cancelled)
        if cancelled():
            raise EngineError("cancelled")
        return trt.TensorRTRunner(spec, precision=precision, target=target)

    return Swapping(first, opener)


def _plans() -> PlanCache:
    """Where compiled networks are kept. Raises EngineError."""
    cache = user_cache()
    if cache is None:
        raise EngineError("there is no folder to keep compiled networks in: set RTBG_CACHE_DIR to one you may write to")
    return cache


def build_all(
    models: Sequence[str] | None = None,
    *,
    precision: str = "auto",
    progress: Callable[[int, int, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> int:
    """Compiles models for TensorRT ahead, each at all its input sizes, in processes of their own; how many plans there
    are then. models: names or files; None: all shipped ones (for "int8" those that have such a graph). progress: (done,
    in all, what comes next, empty at the end). Raises EngineError: TensorRT cannot run here (and which of GPU, driver
    and package is missing), no cache folder, a compilation that fails."""
    target, cache = trt.find_target(), _plans()
    todo = []
    if models is None:
        shipped = [(name, find_model(name)) for name in available_models()]
        models = [name for name, spec in shipped if precision != "int8" or eight_bits(spec) is not None]
    for model in models:
        spec = find_model(model)
        graphs = trt.Graphs(spec, precision)
        spec = recognise(spec, graphs.inputs, graphs.outputs)
        if len(graphs.inputs) != 1:
            raise EngineError(f"{spec.path} has several inputs: it is compiled when it first runs")
        port = graphs.inputs[0]
        for width, height in spec.sizes:
            last = port.shape[1] != 4 and port.shape[3] == 3
            shape = (1, height, width, 3) if last else (1, 4 if spec.kind == "rtbg" else 3, height, width)
            todo.append((f"{spec.name} {width}x{height} {graphs.precision}", graphs, {port.name: shape}))
    for done, (label, graphs, shapes) in enumerate(todo):
        if progress is not None:
            progress(done, len(todo), label)
        if cache.load(graphs.key(target, shapes)) is None:
            compile_apart(make_job(graphs, target, shapes, cache), cancelled=cancelled)
    if progress is not None:
        progress(len(todo), len(todo), "")
    return len(todo)
