"""The whole flow with real threads and links: order, stopping, and every stage failing in turn."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from engines import EngineError
from rtbg.composite import Compositor
from rtbg.errors import Aborted, MattingError
from rtbg.frame import Frame, StreamInfo
from rtbg.matting import Matting
from rtbg.pipeline import QUEUE, run
from rtbg.stats import Stats, Stop

INFO = StreamInfo(64, 48, Fraction(1, 25), Fraction(25))


class Boom(Exception):
    """What a failing stage raises here."""


class Spec:
    sizes = ((64, 48),)


class Engine:
    """Answers a matte that holds the frame's own number, so that a mixed-up pair is seen; `fault(n)` may act up."""

    spec = Spec()
    device = "test engine"

    def __init__(self, fault: Any = None) -> None:
        self.fault, self.calls = fault, 0

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        frame = inputs["frame"]
        self.calls += 1
        if self.fault is not None:
            answer = self.fault(self.calls)
            if answer is not None:
                return {"alpha": answer}
        grey = frame[:, :3].mean(axis=1, keepdims=True)
        return {"alpha": np.ascontiguousarray(grey, dtype=np.float32)}

    def close(self) -> None: ...


class Numbered:
    """A source of flat grey frames whose luma is their number."""

    def __init__(self, count: int, *, live: bool = False, fail_at: int | None = None) -> None:
        self.info, self.live = INFO, live
        self.count, self.fail_at = count, fail_at
        self.given, self.closed = 0, False

    def read(self) -> Frame | None:
        if self.given == self.fail_at:
            raise Boom("read")
        if self.given == self.count:
            return None
        if self.live:
            time.sleep(0.002)
        k = self.given
        self.given += 1
        planes = (np.full((48, 64), 16 + k % 200, np.uint8), *(np.full((24, 32), 128, np.uint8) for _ in range(2)))
        return Frame(planes, k, Fraction(1, 25))

    def close(self) -> None:
        self.closed = True


class Plain:
    """Luma 16 behind everything, or a fault."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls, self.fail_at, self.closed = 0, fail_at, False

    def at(self, frame: Frame, alpha: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.calls == self.fail_at:
            raise Boom("background")
        self.calls += 1
        return tuple(np.full_like(p, 16 if i == 0 else 128) for i, p in enumerate(frame.planes))

    def close(self) -> None:
        self.closed = True


class Keeper:
    """Keeps what it is given, or fails."""

    def __init__(self, fail_at: int | None = None, fail_close: bool = False, wait: float = 0) -> None:
        self.frames: list[Frame] = []
        self.fail_at, self.fail_close, self.wait = fail_at, fail_close, wait
        self.closed: bool | None = None  # how: interrupted or not
        self.aborted = False

    def write(self, frame: Frame) -> None:
        if len(self.frames) == self.fail_at:
            raise Boom("write")
        time.sleep(self.wait)
        self.frames.append(frame)

    def close(self, *, interrupted: bool = False) -> None:
        if self.fail_close:
            raise Boom("close")
        self.closed = interrupted

    def cancel(self) -> None:
        self.cancelled = True

    def abort(self) -> None:
        self.aborted = self.closed is None


def alpha_of(frame: Frame) -> float:
    """What the test engine's matte of a flat frame is, as the frame's own luma says (limited range)."""
    return (float(frame.planes[0][0, 0]) - 16) / 219


def test_every_frame_in_order_with_its_own_matte() -> None:
    source, background, sinks = Numbered(60), Plain(), [Keeper(), Keeper(wait=0.002)]
    stats = run(source, Matting(Engine(), INFO), background, sinks, compositor=Compositor(show="matte"))
    assert stats.frames_in == stats.frames_out == 60
    assert stats.dropped == 0 and not stats.interrupted
    assert {"read", "matting", "background", "composite", "Keeper"} <= set(stats.stages)
    for sink in sinks:
        assert sink.closed is False
        assert [f.pts for f in sink.frames] == list(range(60))
        for f in sink.frames:
            expected = 16 + 219 * (f.pts / 219)  # matte n is n / 219, written as limited luma
            assert abs(int(f.planes[0][5, 5]) - expected) <= 2, f"frame {f.pts} left with another frame's matte"
    assert source.closed and background.closed


def answer(kind: str) -> Any:
    def fault(n: int) -> np.ndarray | None:
        if n < 4:
            return None
        if kind == "raise":
            raise EngineError("engine broke")
        if kind == "nan":
            return np.full((1, 1, 48, 64), np.nan, np.float32)
        if kind == "one nan":
            out = np.zeros((1, 1, 48, 64), np.float32)
            out[0, 0, 7, 7] = np.nan
            return out
        if kind == "range":
            return np.full((1, 1, 48, 64), 3, np.float32)
        return np.zeros((1, 1, 24, 64), np.float32)

    return fault


FAULTS = {
    "read": (Boom, lambda live: (Numbered(30, live=live, fail_at=5), Engine(), Plain(), Keeper())),
    "read at once": (Boom, lambda live: (Numbered(30, live=live, fail_at=0), Engine(), Plain(), Keeper())),
    "engine raises": (MattingError, lambda live: (Numbered(30, live=live), Engine(answer("raise")), Plain(), Keeper())),
    "engine NaN": (MattingError, lambda live: (Numbered(30, live=live), Engine(answer("nan")), Plain(), Keeper())),
    "engine one NaN": (
        MattingError,
        lambda live: (Numbered(30, live=live), Engine(answer("one nan")), Plain(), Keeper()),
    ),
    "engine range": (MattingError, lambda live: (Numbered(30, live=live), Engine(answer("range")), Plain(), Keeper())),
    "engine shape": (MattingError, lambda live: (Numbered(30, live=live), Engine(answer("shape")), Plain(), Keeper())),
    "background": (Boom, lambda live: (Numbered(30, live=live), Engine(), Plain(fail_at=4), Keeper())),
    "write": (Boom, lambda live: (Numbered(30, live=live), Engine(), Plain(), Keeper(fail_at=3))),
    "close": (Boom, lambda live: (Numbered(30, live=live), Engine(), Plain(), Keeper(fail_close=True))),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("live", [False, True], ids=["file", "live"])
@pytest.mark.parametrize("stage", FAULTS)
def test_a_failing_stage_ends_everything(stage: str, live: bool) -> None:
    error, parts = FAULTS[stage]
    source, engine, background, sink = parts(live)
    other = Keeper()
    with pytest.raises(error):
        run(source, Matting(engine, INFO), background, [sink, other])
    assert source.closed and background.closed
    assert sink.aborted
    # The other sink is whole only where it had everything before the first one failed on its close.
    assert other.aborted or (stage == "close" and other.closed is False)


@pytest.mark.timeout(20)
def test_a_failing_progress_callback_ends_everything() -> None:
    def progress(stats: Stats) -> None:
        raise Boom("progress")

    source, sink = Numbered(10_000), Keeper(wait=0.01)
    with pytest.raises(Boom):
        run(source, Matting(Engine(), INFO), Plain(), [sink], progress=progress)
    assert sink.aborted and source.closed


@pytest.mark.timeout(20)
def test_a_slow_sink_holds_the_source_back() -> None:
    source, sink, stop = Numbered(10_000), Keeper(wait=0.05), Stop()
    threading.Timer(0.4, stop.end).start()
    run(source, Matting(Engine(), INFO), Plain(), [sink], stop=stop)
    assert source.given <= len(sink.frames) + 2 * QUEUE + QUEUE // 2 + 4
    assert len(sink.frames) == source.given


@pytest.mark.timeout(20)
def test_a_live_source_is_never_held_back() -> None:
    source, sink = Numbered(150, live=True), Keeper(wait=0.02)
    stats = run(source, Matting(Engine(), INFO), Plain(), [sink])
    assert source.given == 150
    assert stats.dropped > 0
    assert stats.dropped + len(sink.frames) == 150


@pytest.mark.timeout(20)
def test_end_finishes_what_was_read() -> None:
    source, sink, stop = Numbered(100_000), Keeper(), Stop()
    seen: list[int] = []

    def progress(stats: Stats) -> None:
        seen.append(stats.frames_out)
        if stats.frames_out > 20:
            stop.end()

    stats = run(source, Matting(Engine(), INFO), Plain(), [sink], stop=stop, progress=progress)
    assert stats.interrupted and sink.closed is True
    assert len(sink.frames) == source.given < 100_000
    assert seen == sorted(seen)


@pytest.mark.timeout(20)
def test_abort_drops_everything() -> None:
    source, sink, stop = Numbered(100_000), Keeper(), Stop()
    threading.Timer(0.2, stop.abort).start()
    with pytest.raises(Aborted):
        run(source, Matting(Engine(), INFO), Plain(), [sink], stop=stop)
    assert sink.aborted and source.closed
