"""Cameras, engines and sinks for the tests of live mode: small, real, and able to misbehave; and whole runs of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from engines import EngineError
from engines.spec import Port
from rtbg.control import Control
from rtbg.errors import NoPicture, OutputError
from rtbg.frame import LIMITED, SMPTE170M, Color, Frame, StreamInfo
from rtbg.live import Output, Swap, run_live
from rtbg.matting import RAW, Matting, Refinement
from rtbg.stats import Stats, Stop

W, H = 64, 48
COLOR = Color(SMPTE170M, LIMITED)
CARD, BEHIND = 30, 60  # luma of `Plain`'s card and of what it puts behind a person


def info_at(rate: int, size: tuple[int, int] = (W, H)) -> StreamInfo:
    return StreamInfo(*size, Fraction(1, 1_000_000), Fraction(rate), COLOR)


def flat(y: int, u: int = 128, v: int = 128) -> tuple[np.ndarray, ...]:
    return np.full((H, W), y, np.uint8), np.full((H // 2, W // 2), u, np.uint8), np.full((H // 2, W // 2), v, np.uint8)


class Camera:
    """Gives picture k every 1/rate s, `count` of them (None: for ever). Steps in `gone` have no picture, a step there
    takes 20 ms. Every frame given is kept in `given` by its time."""

    live = True

    def __init__(
        self,
        draw: Callable[[int], tuple[np.ndarray, ...]],
        *,
        rate: int = 100,
        count: int | None = None,
        gone: range = range(0),
        nominal: int | None = None,
    ) -> None:
        self.info = info_at(nominal or rate)
        self.draw, self.rate, self.count, self.gone = draw, rate, count, gone
        self.began = time.perf_counter()
        self.step = 0
        self.next = time.perf_counter()
        self.given: dict[int, int] = {}
        self.hold = threading.Event()  # while set, nothing comes
        self.closed = 0

    def read(self) -> Frame | None:
        if self.count is not None and self.step >= self.count:
            return None
        k = self.step
        if self.hold.is_set() or k in self.gone:
            self.step += not self.hold.is_set()
            time.sleep(0.02)
            raise NoPicture("the camera is gone: plug it in")
        self.step += 1
        self.next = max(self.next + 1 / self.rate, time.perf_counter() - 1 / self.rate)
        time.sleep(max(0.0, self.next - time.perf_counter()))
        now = time.perf_counter()
        pts = round((now - self.began) * 1e6)
        self.given[pts] = k
        return Frame(self.draw(k), pts, self.info.time_base, COLOR, captured=now)

    def close(self) -> None:
        self.closed += 1


class Spec:
    sizes = ((W, H),)


class Engine:
    """Answers `answer(frame, n)` for its n-th picture (from 1): a matte (1, 1, H, W), or whatever it does instead."""

    spec: Any = Spec()
    name = device = "test engine"

    def __init__(self, answer: Callable[[np.ndarray, int], Any]) -> None:
        self.answer, self.calls, self.closed = answer, 0, 0

    def infer(self, inputs: Any) -> Any:
        self.calls += 1
        return {"alpha": self.answer(inputs["frame"], self.calls)}

    def close(self) -> None:
        self.closed += 1


class Runner:
    """A network of rtbg's own kind as a library has opened it (`engines.runner.Runner`): answers `answer(frame, n)` for
    its n-th picture (from 1)."""

    name = "test"
    inputs = (Port("frame", "float32", (1, 4, H, W)),)
    outputs = (Port("alpha", "float32", (1, 1, H, W)),)

    def __init__(self, device: str, answer: Callable[[np.ndarray, int], Any]) -> None:
        self.device, self.answer, self.calls, self.closed = device, answer, 0, 0

    def run(self, feeds: Any, wanted: Any) -> list[Any]:
        self.calls += 1
        return [self.answer(feeds["frame"], self.calls)]

    def close(self) -> None:
        self.closed += 1


def zeros(frame: np.ndarray | None = None, n: int = 0) -> np.ndarray:
    return np.zeros((1, 1, H, W), np.float32)


def ones(frame: np.ndarray | None = None, n: int = 0) -> np.ndarray:
    return np.ones((1, 1, H, W), np.float32)


class Opener:
    """A factory of mattings that counts them. make(k): the engine of the k-th one."""

    def __init__(self, make: Callable[[int], Engine], info: StreamInfo, refinement: Refinement = RAW) -> None:
        self.make, self.info, self.refinement = make, info, refinement
        self.engines: list[Engine] = []

    def __call__(self) -> Matting:
        self.engines.append(self.make(len(self.engines)))
        return Matting(self.engines[-1], self.info, self.refinement)


class Recording:
    """A sink that keeps all it was given, each with the moment. fail_at: the write that fails. slow: seconds each."""

    def __init__(self, *, fail_at: int | None = None, slow: float = 0.0, path: Path | None = None) -> None:
        self.fail_at, self.slow, self.path = fail_at, slow, path
        self.frames: list[Frame] = []
        self.times: list[float] = []
        self.closed = self.aborted = self.cancelled = False

    def write(self, frame: Frame) -> None:
        if len(self.frames) == self.fail_at:
            raise OutputError("the sink failed: mend it")
        if self.slow:
            time.sleep(self.slow)
        self.frames.append(frame)
        self.times.append(time.perf_counter())

    def close(self, *, interrupted: bool = False) -> Path | None:
        assert not interrupted
        self.closed = True
        return self.path

    def cancel(self) -> None:
        self.cancelled = True

    def abort(self) -> None:
        self.aborted = True


class Plain:
    """A background of one colour whose card has another luma, so that both can be told apart. `step` changes it."""

    def __init__(self, info: StreamInfo, *, luma: int = 60, card: int = 30) -> None:
        self.luma = luma
        self.steady, self.version = True, 0
        self.cards = flat(card)
        self.fail = False
        self.closed = 0

    def step(self) -> None:
        self.luma += 10
        self.cards = flat(int(self.cards[0][0, 0]) + 1)
        self.version += 1

    def card(self) -> tuple[np.ndarray, ...]:
        return self.cards

    def at(self, frame: Frame, alpha: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.fail:
            raise RuntimeError("the background failed")
        return flat(self.luma)

    def close(self) -> None:
        self.closed += 1


class Steps:
    """Drives a run from its progress callback: each step is (condition, action), done in turn; the last one ends.
    Fails the test when a condition does not come true within `limit` seconds."""

    def __init__(self, *steps: tuple[Callable[[Stats], bool], Callable[[], object]], limit: float = 15.0) -> None:
        self.steps, self.limit = list(steps), limit
        self.since = time.perf_counter()
        self.seen: list[str] = []  # every trouble, once in a row

    def __call__(self, stats: Stats) -> None:
        if stats.trouble and (not self.seen or self.seen[-1] != stats.trouble):
            self.seen.append(stats.trouble)
        if self.steps and self.steps[0][0](stats):
            self.steps.pop(0)[1]()
            self.since = time.perf_counter()
        assert not self.steps or time.perf_counter() - self.since < self.limit, f"{len(self.steps)} steps left: {stats}"


def lumas(sink: Recording) -> list[int]:
    return [int(f.planes[0][0, 0]) for f in sink.frames]


def moving(k: int) -> tuple[np.ndarray, ...]:
    return flat(100 + k % 100)


class Setup:
    """A run with everything at hand. Person everywhere unless another `answer` is given."""

    def __init__(
        self,
        *,
        draw: Callable[[int], tuple[np.ndarray, ...]] = moving,
        answer: Callable[[np.ndarray, int], Any] = ones,
        **camera: Any,
    ) -> None:
        self.stop = Stop()
        self.control = Control(quit=self.stop.end)
        self.camera = Camera(draw, **camera)
        self.backdrop = Plain(self.camera.info)
        self.opener = Opener(lambda k: Engine(answer), self.camera.info)
        self.sink = Recording()
        self.swap = Swap()

    def run(self, *steps: Any, outputs: Any = None, limit: float = 15.0, opener: Any = None, **more: Any) -> Stats:
        self.steps = Steps(*steps, limit=limit)
        stats = run_live(
            self.camera,
            opener or self.opener,
            self.backdrop,
            outputs or [Output(self.sink)],
            control=self.control,
            stop=self.stop,
            swap=self.swap,
            progress=self.steps,
            **more,
        )
        assert not self.steps.steps, f"{len(self.steps.steps)} steps left at the end"
        return stats

    def all_closed(self) -> bool:
        return bool(self.camera.closed and self.backdrop.closed and all(e.closed for e in self.opener.engines))


def after(count: int) -> Callable[[Stats], bool]:
    return lambda stats: stats.frames_out >= count


class Elsewhere(BaseException):
    """What an extension may raise beside Exception."""


def hang(release: threading.Event, seconds: float) -> np.ndarray:
    release.wait(seconds)
    return zeros()


def raising(exc: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise exc

    return act


# What an engine may do instead of answering; `hang` is told apart by the tests.
FAULTS: dict[str, Callable[[], Any]] = {
    "engine error": raising(EngineError("the device is lost")),
    "bug": raising(ZeroDivisionError("division by zero")),
    "not an Exception": raising(Elsewhere("a panic")),
    "NaN": lambda: np.full((1, 1, H, W), np.nan, np.float32),
    "a NaN": lambda: np.where(np.arange(H * W).reshape(1, 1, H, W) == 77, np.nan, 0).astype(np.float32),
    "too large": lambda: np.full((1, 1, H, W), 7, np.float32),
    "wrong shape": lambda: np.ones((1, 1, H, W // 2), np.float32),
    "no batch": lambda: np.ones((H, W), np.float32),
    "wrong dtype": lambda: np.full((1, 1, H, W), 255, np.uint8),
    "objects": lambda: np.full((1, 1, H, W), None, object),
    "None": lambda: None,
}
