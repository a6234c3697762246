"""The live flow with real threads: the card, the clock, the controls, sinks that fail, and every way to end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from engines import EngineError, load
from rtbg.backdrop import Backdrop
from rtbg.composite import Compositor
from rtbg.control import Control
from rtbg.errors import Aborted, BackgroundError, InputError, MattingError, OutputError, UsageError
from rtbg.foreground import Foreground
from rtbg.frame import Frame
from rtbg.live import Output, Swap, run_live
from rtbg.matting import Matting, Refinement
from rtbg.options import Options
from rtbg.sinks import open_sink
from rtbg.sources.demo import DemoSource
from rtbg.stats import Stats, Stop
from tests.live_parts import (
    COLOR,
    FAULTS,
    Camera,
    Engine,
    Opener,
    Plain,
    Recording,
    Steps,
    flat,
    hang,
    info_at,
    ones,
    zeros,
)

CARD, BEHIND = 30, 60  # luma of `Plain`'s card and of what it puts behind a person


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


def test_the_card_comes_before_the_model() -> None:
    """The camera is opened and the card flows at the full rate while the model loads."""
    setup = Setup(rate=50)
    loaded = threading.Event()

    def slowly() -> Matting:
        assert loaded.wait(10)
        return setup.opener()

    stats = setup.run(
        (lambda s: s.filled >= 20 and s.frames_in >= 20, loaded.set), (after(20), setup.stop.end), opener=slowly
    )
    shown = lumas(setup.sink)
    first = next(k for k, luma in enumerate(shown) if luma >= 100)
    assert set(shown[:first]) == {CARD}
    assert first >= 20
    assert shown[-1] == CARD, "a reader that keeps the last picture keeps the card"
    assert stats.covered >= 20
    assert stats.dropped < stats.frames_in - 20 - 10, "what nobody was to see yet is not counted as dropped"
    assert stats.engine == "test engine"
    assert setup.sink.closed
    assert setup.all_closed()


@pytest.mark.parametrize("nominal", [20, 60])
def test_the_clock_keeps_the_rate(nominal: int) -> None:
    """A camera that gives nothing for a second: the pictures go on at its rate."""
    setup = Setup(rate=nominal)
    until = [0.0]

    def unplug() -> None:
        setup.camera.hold.set()
        until[0] = time.monotonic() + 1.2

    setup.run((after(15), unplug), (lambda s: time.monotonic() > until[0], setup.stop.end))
    times = np.array(setup.sink.times)
    gaps = np.diff(times[times < until[0]])
    gone = (times > until[0] - 1.0) & (times < until[0])
    assert 0.7 * nominal <= gone.sum() <= 1.2 * nominal
    assert np.quantile(gaps, 0.9) < 3 / nominal


def test_gaps_are_filled_with_the_last_picture_then_with_the_card() -> None:
    """The source says nothing of being in trouble, it only stalls."""
    setup = Setup(rate=50)
    stalled = threading.Event()
    inner = setup.camera.draw

    def draw(k: int) -> tuple[np.ndarray, ...]:
        if k == 20:
            stalled.wait(0.9)
        return inner(k)

    setup.camera.draw = draw
    stats = setup.run((after(30), setup.stop.end), patience=0.4)
    shown, times = lumas(setup.sink), setup.sink.times
    start = shown.index(119)  # the 20th picture
    stop = shown.index(CARD, start)
    assert set(shown[start:stop]) == {119}
    assert 0.3 < times[stop] - times[start] < 0.8
    assert shown[stop + 5] == CARD
    assert stats.filled > stats.covered > 0
    assert stats.trouble == ""


def test_latency_is_counted_from_the_capture() -> None:
    setup = Setup(rate=30, answer=lambda f, n: (time.sleep(0.02), ones())[1])
    stats = setup.run((after(20), setup.stop.end), outputs=[Output(Recording(slow=0.005))])
    assert stats.latency is not None
    assert stats.latency.count == stats.frames_out
    assert 0.025 <= stats.latency.quantile(0.5) < 0.3
    assert set(stats.stages) == {"read", "format", "gate", "matting", "background", "composite", "Recording"}
    assert stats.stages["matting"] > 0.02 * 19
    assert stats.stages["Recording"] > 0.005 * 19


@pytest.mark.parametrize(("policy", "luma"), [("card", CARD), ("freeze", None), ("black", 16)])
def test_what_is_shown_while_the_camera_is_gone(policy: str, luma: int | None) -> None:
    setup = Setup(rate=50)
    recorder = Recording()
    mark = [0]
    stats = setup.run(
        (after(10), setup.camera.hold.set),
        (lambda s: bool(s.trouble) and s.covered > 20, lambda: mark.__setitem__(0, len(setup.sink.frames))),
        (lambda s: True, setup.camera.hold.clear),
        (lambda s: not s.trouble and s.frames_out > 30, setup.stop.end),
        outputs=[Output(setup.sink), Output(recorder, clocked=False, required=False)],
        on_failure=policy,
    )
    shown = lumas(setup.sink)
    kept = shown[mark[0] - 5 : mark[0]]
    assert len(set(kept)) == 1
    assert kept[0] == luma if luma is not None else kept[0] >= 100
    assert shown[0] == CARD
    assert setup.steps.seen[0] == "the camera is gone: plug it in"
    assert stats.trouble == ""
    recorded = lumas(recorder)
    assert sum(x < 100 for x in recorded) == (0 if policy == "freeze" else 1), "one covering picture"
    assert np.all(np.diff([f.pts for f in recorder.frames]) > 0)
    assert all(f.pts in setup.camera.given for f in recorder.frames if f.planes[0][0, 0] >= 100)


def test_no_flicker_between_trouble_and_the_next_picture() -> None:
    """The camera is back, but its first picture is not finished: what covers stays. Nor does a picture that was under
    way as the camera went come after the card."""
    setup = Setup(rate=50, nominal=100, gone=range(15, 22), answer=lambda f, n: (time.sleep(0.25), ones())[1])
    recorder = Recording()
    outputs = [Output(setup.sink), Output(recorder, clocked=False, required=False)]
    setup.run((lambda s: setup.camera.step > 60, setup.stop.end), outputs=outputs, patience=5.0)
    assert np.all(np.diff([f.pts for f in recorder.frames]) > 0)
    assert CARD in lumas(recorder)
    fresh = [f.pts in setup.camera.given for f in setup.sink.frames]
    shown = lumas(setup.sink)[fresh.index(True) : -1]
    fresh = fresh[fresh.index(True) : -1]
    after_card = [
        now for now, new, before in zip(shown[1:], fresh[1:], shown, strict=False) if before == CARD and not new
    ]
    assert len(after_card) > 5
    assert set(after_card) == {CARD}
    after_trouble = [shown[k + 1] for k in range(len(shown) - 1) if shown[k] == CARD != shown[k + 1]]
    assert len(after_trouble) == 1
    assert after_trouble[0] >= 122, "the first one taken after it, or a later one"


def test_a_wrong_policy_is_refused() -> None:
    setup = Setup()
    with pytest.raises(UsageError, match="card, freeze or black"):
        setup.run(on_failure="room")
    assert setup.camera.closed
    assert setup.backdrop.closed
    assert setup.sink.aborted


def test_freeze() -> None:
    """One picture for as long as it is frozen, also with the camera gone, and no flash of the card after it."""
    setup = Setup(rate=50, answer=lambda f, n: (time.sleep(0.06), ones())[1])
    marks: list[int] = []

    def mark() -> None:
        marks.append(len(setup.sink.frames))

    setup.run(
        (after(10), lambda: setup.control.press("space")),
        (lambda s: True, mark),
        (lambda s: len(setup.sink.frames) > marks[0] + 20, setup.camera.hold.set),
        (lambda s: len(setup.sink.frames) > marks[0] + 50, setup.camera.hold.clear),
        (lambda s: not s.trouble, mark),
        (lambda s: len(setup.sink.frames) > marks[1] + 10, lambda: setup.control.press(" ")),
        (lambda s: s.frames_out > 20, setup.stop.end),
    )
    shown = lumas(setup.sink)
    frozen = shown[marks[0] : marks[1]]
    assert len(frozen) > 50
    assert len(set(frozen)) == 1
    assert frozen[0] >= 100
    assert CARD not in shown[marks[0] : -1]


def test_freeze_before_the_first_picture_is_the_card() -> None:
    setup = Setup(rate=50)
    setup.control.press("space")
    setup.run((lambda s: s.filled > 10, setup.stop.end))
    assert set(lumas(setup.sink)) == {CARD}


def since(setup: Setup, moment: float) -> list[int]:
    """Lumas of the pictures taken after a moment, as they left; without those that the clock put in."""
    return [int(f.planes[0][0, 0]) for f in setup.sink.frames if f.captured > moment and f.pts in setup.camera.given]


def test_matte_view() -> None:
    """The matte is shown from the next picture on, and the composite again, though nothing moves."""
    setup = Setup(draw=lambda k: flat(120), rate=60)
    toggles: list[float] = []

    def toggle() -> None:
        setup.control.press("m")
        toggles.append(time.monotonic())

    setup.run((after(15), toggle), (after(30), toggle), (after(45), toggle), (after(60), setup.stop.end))
    assert set(lumas(setup.sink)) == {CARD, 120, 235}
    first, second, third = (since(setup, t) for t in toggles)
    assert set(first[: len(first) - len(second) - 1]) == {235}
    assert set(second[: len(second) - len(third) - 1]) == {120}
    assert set(third) == {235}
    assert len(third) > 5


def test_a_still_scene_is_sent_again_and_not_inferred() -> None:
    setup = Setup(draw=lambda k: flat(120), rate=60)
    stats = setup.run((after(60), setup.stop.end))
    calls = setup.opener.engines[0].calls
    assert stats.reused >= 30
    assert calls + stats.reused >= stats.frames_out
    assert calls <= 20
    assert calls >= 2, "not for longer than half a second"
    pts = [f.pts for f in setup.sink.frames[:-1] if f.pts in setup.camera.given]
    assert len(set(pts)) == len(pts) > 30, "each at its own time"


def test_reuse_can_be_switched_off() -> None:
    setup = Setup(draw=lambda k: flat(120), rate=60)
    stats = setup.run((after(20), setup.stop.end), reuse=False)
    assert stats.reused == 0
    assert setup.opener.engines[0].calls >= stats.frames_out


def test_a_still_scene_never_keeps_an_old_background() -> None:
    """The step shows in the next picture, though nothing moved; the card follows too."""
    setup = Setup(draw=lambda k: flat(120), answer=zeros, rate=60)
    steps: list[float] = []

    def step_on() -> None:
        setup.backdrop.step()
        steps.append(time.monotonic())

    setup.run((after(15), step_on), (after(38), step_on), (after(60), setup.stop.end))
    first, second = (since(setup, t) for t in steps)
    assert set(first[: len(first) - len(second) - 1]) == {BEHIND + 10}
    assert set(second) == {BEHIND + 20}
    assert len(second) > 5
    assert lumas(setup.sink)[-1] == CARD + 2


def test_a_background_that_moves_is_not_reused() -> None:
    setup = Setup(draw=lambda k: flat(120), rate=60)
    setup.backdrop.steady = False
    assert setup.run((after(20), setup.stop.end)).reused == 0


def test_a_recorder_that_fails_does_not_end_the_call(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(rate=60)
    recorder = Recording(fail_at=5)
    with caplog.at_level(logging.WARNING):
        stats = setup.run(
            (after(60), setup.stop.end), outputs=[Output(setup.sink), Output(recorder, clocked=False, required=False)]
        )
    assert stats.lost == ["the sink failed: mend it"]
    assert [r.getMessage() for r in caplog.records] == ["the sink failed: mend it: the rest goes on"]
    assert stats.frames_out >= 60
    assert recorder.aborted
    assert not recorder.closed
    assert setup.sink.closed


@pytest.mark.parametrize("fail_at", [0, 10])
def test_a_virtual_camera_that_fails_ends_the_call(fail_at: int) -> None:
    """What was recorded is completed all the same."""
    setup = Setup(rate=60)
    camera, recorder = Recording(fail_at=fail_at), Recording()
    with pytest.raises(OutputError, match="mend it"):
        setup.run(outputs=[Output(camera), Output(recorder, clocked=False, required=False)])
    assert camera.aborted
    assert not camera.closed
    assert recorder.closed
    assert setup.camera.closed
    assert setup.backdrop.closed


def test_the_only_output_that_fails_ends_the_run() -> None:
    setup = Setup(rate=60)
    with pytest.raises(OutputError):
        setup.run(outputs=[Output(Recording(fail_at=5), clocked=False, required=False)])
    assert setup.all_closed()


def test_a_slow_recorder_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """What it lacks is said; the time that it takes to complete its file is not the run's."""
    setup = Setup(rate=100, nominal=10)
    recorder = Recording(slow=0.05)
    completing: list[float] = []
    ended = [0.0]

    def end() -> None:
        ended[0] = time.monotonic()
        setup.stop.end()

    began = time.monotonic()
    stats = setup.run(
        (after(80), end),
        outputs=[Output(setup.sink), Output(recorder, clocked=False)],
        completing=lambda: completing.append(time.monotonic()),
    )
    assert stats.dropped <= 15
    assert len(recorder.frames) < 60
    assert recorder.closed
    lost = [r.getMessage() for r in caplog.records]
    assert len(lost) == 1
    assert "the recording lacks" in lost[0]
    assert "--preset veryfast" in lost[0]
    assert len(completing) == 1
    assert completing[0] > ended[0]
    assert 0 < stats.seconds < ended[0] - began + 0.3 < time.monotonic() - began
    assert 0 < stats.cpu_seconds < time.process_time()


def test_what_the_source_left_out_is_dropped() -> None:
    """But not what it left out before the engine was open."""
    setup = Setup(rate=50)
    loaded = threading.Event()
    setup.camera.dropped = 1000  # type: ignore[attr-defined]

    def slowly() -> Matting:
        assert loaded.wait(10)
        return setup.opener()

    def leave_out() -> None:
        setup.camera.dropped += 500  # type: ignore[attr-defined]

    stats = setup.run(
        (lambda s: s.filled > 5, lambda: (leave_out(), loaded.set())),
        (after(5), leave_out),
        (after(10), setup.stop.end),
        opener=slowly,
    )
    assert 500 <= stats.dropped < 600
    assert stats.frames_in == 500 + len(setup.camera.given)


def test_a_recorder_stopped_before_its_first_picture_is_no_fault(tmp_path: Path) -> None:
    setup = Setup(rate=50)
    loaded = threading.Event()
    file = open_sink(tmp_path / "rec.mkv", setup.camera.info)

    def slowly() -> Matting:
        assert loaded.wait(10)
        return setup.opener()

    def end() -> None:
        setup.stop.end()
        threading.Timer(0.5, loaded.set).start()

    stats = setup.run(
        (lambda s: s.seconds > 0.3, end), outputs=[Output(file, clocked=False, required=False)], opener=slowly
    )
    assert not stats.outputs
    assert not stats.lost
    assert not list(tmp_path.iterdir())


def test_a_covering_picture_before_the_first_one_disorders_no_recording() -> None:
    """The source's time is not known then, and may have begun long before."""
    for shift in (0.0, -5.0):
        setup = Setup(rate=50)
        setup.camera.hold.set()
        setup.camera.began += shift
        recorder = Recording()
        setup.run(
            (lambda s: bool(s.trouble) and s.filled > 5, lambda: time.sleep(0.2)),
            (lambda s: True, setup.camera.hold.clear),
            (after(30), setup.stop.end),
            outputs=[Output(setup.sink), Output(recorder, clocked=False, required=False)],
        )
        assert lumas(recorder)[0] == CARD
        assert np.all(np.diff([f.pts for f in recorder.frames]) > 0)
        assert np.all(np.diff([f.captured for f in recorder.frames]) > 0)
        assert len(recorder.frames) > 10, f"{shift}"


def test_a_recording_is_a_real_file(tmp_path: Path) -> None:
    """With the camera gone for a while: times go on, and the last picture lasts to the end."""
    setup = Setup(rate=30)
    info = setup.camera.info
    file = open_sink(tmp_path / "rec.mp4", info)
    stats = setup.run(
        (after(15), setup.camera.hold.set),
        (lambda s: bool(s.trouble), lambda: None),
        (lambda s: s.covered > 30, setup.stop.end),
        outputs=[Output(setup.sink), Output(file, clocked=False, required=False)],
    )
    assert stats.outputs == [tmp_path / "rec.mp4"]
    assert not stats.lost
    with av.open(str(tmp_path / "rec.mp4")) as container:
        frames = list(container.decode(video=0))
        length = float(container.duration / 1_000_000)
    times = [float(f.pts * f.time_base) for f in frames]
    assert len(frames) >= 15
    assert np.all(np.diff(times) > 0)
    assert length > times[14] + 0.8, "as long as the call"
    assert abs(int(frames[-1].to_ndarray(format="gray")[10, 10]) - 16) < 8, "the card, luma 30, in full range"


class Ending:
    """A run that ends at some moment, in some way."""

    def __init__(self, moment: str, how: str) -> None:
        self.moment, self.how = moment, how
        self.release, self.loaded = threading.Event(), threading.Event()
        faults = {
            "trouble": lambda f, n: FAULTS["bug"](),
            "hang": lambda f, n: ones() if n < 5 else hang(self.release, 20),
            "covered": lambda f, n: FAULTS["NaN"](),
        }
        self.setup = Setup(rate=100, answer=faults.get(moment, ones))
        if moment == "no camera":
            self.setup.camera.hold.set()
        self.recorder = Recording()
        self.took = 0.0

    def open(self) -> Matting:
        if self.moment == "loading":
            self.loaded.wait(10)
        return self.setup.opener()

    def reached(self, stats: Stats) -> bool:
        if self.moment in ("trouble", "hang", "covered", "no camera") and not stats.trouble:
            return False
        return stats.frames_out > 10 if self.moment == "running" else stats.filled > 3

    def end(self) -> None:
        self.took = time.monotonic()
        if self.how == "source":
            self.setup.camera.count = 0
            self.setup.camera.hold.clear()
        else:
            getattr(self.setup.stop, self.how)()
        threading.Timer(0.3, self.loaded.set).start()

    def run(self) -> None:
        outputs = [Output(self.setup.sink), Output(self.recorder, clocked=False, required=False)]
        try:
            self.setup.run((self.reached, self.end), outputs=outputs, opener=self.open, patience=0.2)
        finally:
            self.took = time.monotonic() - self.took


@pytest.mark.parametrize("how", ["end", "abort", "source"])
def test_every_end_joins_and_closes_everything(how: str) -> None:
    """At every moment; a hung engine holds up nothing for long, and is closed should it come back."""
    endings = [Ending(moment, how) for moment in ("loading", "no camera", "running", "trouble", "hang", "covered")]
    with ThreadPoolExecutor(len(endings), thread_name_prefix="runs") as pool:
        results = [pool.submit(ending.run) for ending in endings]
    left = [t.name for t in threading.enumerate() if t.name.startswith("rtbg-")]
    for ending, result in zip(endings, results, strict=True):
        ending.release.set()
        if how == "abort":
            with pytest.raises(Aborted, match="nothing was recorded"):
                result.result()
            assert ending.recorder.cancelled
        else:
            result.result()
            assert ending.setup.sink.closed
            empty = how == "end" and not ending.recorder.frames  # stopped before there was a picture: no file
            assert ending.recorder.closed != empty
            assert ending.recorder.aborted
        assert ending.took < 6, ending.moment
        assert lumas(ending.setup.sink)[-1] == CARD
        assert ending.setup.camera.closed
        assert ending.setup.backdrop.closed
    assert left == ["rtbg-matting"], "the one that hangs"
    engines = [e for ending in endings for e in ending.setup.opener.engines]
    deadline = time.monotonic() + 5
    while not all(e.closed for e in engines) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(e.closed for e in engines)
    assert len(engines) >= len(endings)


@pytest.mark.parametrize("policy", ["card", "freeze"])
def test_a_hang_is_told_and_its_late_answer_never_leaves(policy: str) -> None:
    """After it, the composite comes back by itself."""
    release = threading.Event()
    setup, recorder = Setup(rate=50, answer=lambda f, n: hang(release, 20) if n == 20 else ones()), Recording()
    stats = setup.run(
        (lambda s: "the matting has not answered for" in s.trouble, lambda: None),
        (lambda s: s.covered > 10, release.set),
        (lambda s: not s.trouble and s.frames_out > 40, setup.stop.end),
        outputs=[Output(setup.sink), Output(recorder, clocked=False, required=False)],
        on_failure=policy,
        patience=0.2,
    )
    for sink in (setup.sink, recorder):
        assert BEHIND not in lumas(sink), "its late matte was zero: the picture of that moment did not leave"
    assert len(setup.opener.engines) == 1
    assert stats.dropped >= 1


def test_an_engine_that_keeps_failing_is_opened_anew() -> None:
    tries: list[int] = []

    def make(k: int) -> Engine:
        tries.append(k)
        if len(tries) == 2:
            raise EngineError("no memory on the device")
        return Engine(ones if k else lambda f, n: ones() if n < 5 else FAULTS["engine error"]())

    setup = Setup(rate=100)
    setup.opener.make = make
    setup.run((lambda s: s.frames_out > 20, setup.stop.end))
    assert len(tries) == 3
    assert len(setup.opener.engines) == 2
    assert all(e.closed for e in setup.opener.engines)
    assert "the device is lost" in setup.steps.seen[0]


def test_a_first_engine_that_cannot_be_opened_ends_the_run() -> None:
    setup = Setup()
    for wrong, expected in ((EngineError("no model"), MattingError), (MattingError("no model"), MattingError)):

        def fail(wrong: Exception = wrong) -> Matting:
            raise wrong

        with pytest.raises(expected, match="no model"):
            setup.run(opener=fail)
    assert setup.sink.closed


def test_a_source_that_cannot_be_read_ends_the_run() -> None:
    setup = Setup()

    def read() -> Frame | None:
        raise InputError("no such camera")

    setup.camera.read = read  # type: ignore[method-assign]
    with pytest.raises(InputError, match="no such camera"):
        setup.run()
    assert setup.all_closed()


def test_a_card_that_cannot_be_made_is_told_before_anything_starts() -> None:
    setup = Setup()

    def card() -> tuple[np.ndarray, ...]:
        raise BackgroundError("no such file")

    setup.backdrop.card = card  # type: ignore[method-assign]
    with pytest.raises(BackgroundError):
        setup.run()
    assert not setup.sink.frames
    assert setup.all_closed()
    assert setup.sink.aborted


def test_a_swap_takes_place_between_two_frames() -> None:
    setup = Setup(rate=100)
    second, third = Engine(zeros), Engine(zeros)
    second.device = third.device = "second engine"

    def swap() -> None:
        setup.swap.put(Matting(second, setup.camera.info))
        setup.swap.put(Matting(third, setup.camera.info))

    stats = setup.run((after(20), swap), (lambda s: third.calls > 10, setup.stop.end))
    assert stats.engine == "second engine"
    shown = [x for x in lumas(setup.sink) if x != CARD]
    first = shown.index(BEHIND)
    assert set(shown[first:]) == {BEHIND}
    assert min(shown[:first]) >= 100
    assert setup.opener.engines[0].closed
    assert (second.calls, third.calls > 0) == (0, True), "of two that waited, the later"
    assert second.closed
    assert third.closed
    late = Engine(zeros)
    setup.swap.put(Matting(late, setup.camera.info))
    assert late.closed, "after the run"


def test_the_callers_thread_may_wait_in_its_own_way() -> None:
    """A preview's window wants that thread."""
    setup, waited = Setup(rate=50), []

    def wait(seconds: float) -> None:
        waited.append((seconds, threading.current_thread()))
        time.sleep(0.01)

    setup.run((after(20), setup.stop.end), wait=wait)
    assert len(waited) > 10
    assert set(waited) == {(0.1, threading.current_thread())}


def test_the_progress_callback_may_fail() -> None:
    setup = Setup()

    def progress(stats: Stats) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_live(setup.camera, setup.opener, setup.backdrop, [Output(setup.sink)], progress=progress)
    assert setup.all_closed()


def test_with_the_shipped_model(tmp_path: Path) -> None:
    """The demo's person before a real picture: she is there, her room is not, and most of it in time."""
    size = 320, 240
    demo = DemoSource(size=size, seconds=2)
    pictures = [f.planes for f in iter(demo.read, None)]
    camera = Camera(lambda k: pictures[k % len(pictures)], rate=20)
    info = camera.info = info_at(20, size)
    path = tmp_path / "green.png"
    cv2.imwrite(str(path), np.full((60, 80, 3), (0, 160, 0), np.uint8))
    stop = Stop()
    control = Control(quit=stop.end)
    backdrop = Backdrop([str(path)], info, control=control)
    sink = Recording()
    stats = run_live(
        camera,
        lambda: Matting(load(Options().model, threads=1), info, Refinement()),
        backdrop,
        [Output(sink)],
        compositor=Compositor(foreground=Foreground()),
        control=control,
        stop=stop,
        progress=Steps((after(20), stop.end), limit=30),
        patience=2.0,
    )
    assert stats.engine
    green = backdrop.card()
    fresh = [f for f in sink.frames if f.pts in camera.given]
    assert len(fresh) >= 20
    for frame in fresh[3:]:
        k = camera.given[frame.pts]
        for p, q in zip(frame.planes, green, strict=True):
            corner = np.s_[: p.shape[0] // 6, -p.shape[1] // 8 :]
            assert np.abs(p[corner].astype(int) - q[corner]).max() <= 3, "the room beside her is gone"
        middle = np.s_[60:100, 125:165]
        difference = frame.planes[0][middle].astype(int) - pictures[k % len(pictures)][0][middle]
        assert np.abs(difference).mean() < 4, "her face is there, of that very picture"


def test_colors_and_times_travel() -> None:
    setup = Setup(rate=60)
    setup.run((after(10), setup.stop.end))
    assert {f.color for f in setup.sink.frames} == {COLOR}
    assert {f.time_base for f in setup.sink.frames} == {Fraction(1, 1_000_000)}
