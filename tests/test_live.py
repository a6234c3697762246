"""The live flow with real threads: the card, the clock, the controls, pictures that are sent again."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines import load
from rtbg.backdrop import Backdrop
from rtbg.composite import Compositor
from rtbg.control import Control
from rtbg.errors import UsageError
from rtbg.foreground import Foreground
from rtbg.live import Output, run_live
from rtbg.matting import Matting, Refinement
from rtbg.options import Options
from rtbg.sources.demo import DemoSource
from rtbg.stats import Stop
from tests.live_parts import (
    BEHIND,
    CARD,
    COLOR,
    Camera,
    Engine,
    Recording,
    Setup,
    Steps,
    after,
    flat,
    info_at,
    lumas,
    ones,
    zeros,
)


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
        until[0] = time.perf_counter() + 1.2

    setup.run((after(15), unplug), (lambda s: time.perf_counter() > until[0], setup.stop.end))
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


def test_freeze_keeps_what_covers() -> None:
    """Whom the card covers is not shown again by the freeze key, which is often pressed by mistake just then."""
    setup = Setup(rate=50)
    marks: list[int] = []

    def mark() -> None:
        marks.append(len(setup.sink.frames))

    setup.run(
        (after(10), setup.camera.hold.set),
        (lambda s: len(setup.sink.frames) > 10 and lumas(setup.sink)[-1] == CARD, mark),
        (lambda s: True, lambda: setup.control.press("space")),
        (lambda s: len(setup.sink.frames) > marks[0] + 20, setup.camera.hold.clear),
        (lambda s: len(setup.sink.frames) > marks[0] + 40, mark),
        (lambda s: True, lambda: setup.control.press("space")),
        (lambda s: lumas(setup.sink)[-1] >= 100, setup.stop.end),
    )
    assert set(lumas(setup.sink)[marks[0] : marks[1]]) == {CARD}


def test_a_slow_camera_is_not_late() -> None:
    """At one picture a second a recording has no card between two, and a virtual camera none either."""
    setup, recorder = Setup(rate=1), Recording()
    setup.run((after(4), setup.stop.end), outputs=[Output(setup.sink), Output(recorder, clocked=False)])
    assert len(recorder.frames) >= 3 and CARD not in lumas(recorder)
    shown = lumas(setup.sink)
    first = next(k for k, luma in enumerate(shown) if luma >= 100)
    assert CARD not in shown[first:-1]


def since(setup: Setup, moment: float) -> list[int]:
    """Lumas of the pictures taken after a moment, as they left; without those that the clock put in."""
    return [int(f.planes[0][0, 0]) for f in setup.sink.frames if f.captured > moment and f.pts in setup.camera.given]


def test_matte_view() -> None:
    """The matte is shown from the next picture on, and the composite again, though nothing moves."""
    setup = Setup(draw=lambda k: flat(120), rate=60)
    toggles: list[float] = []

    def toggle() -> None:
        setup.control.press("m")
        toggles.append(time.perf_counter())

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
        steps.append(time.perf_counter())

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
