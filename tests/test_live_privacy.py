"""Fail closed, by fault injection: whatever the engine, the background or the camera does, the room never leaves.

The camera of these tests shows one colour that nothing else has; the background is a real picture file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import engines.swap
from engines import EngineError
from engines.signature import adapt
from engines.spec import ModelSpec
from engines.swap import Swapping
from rtbg.backdrop import Backdrop
from rtbg.composite import black_planes, composite
from rtbg.control import Control
from rtbg.frame import Frame
from rtbg.live import Output, Swap, run_live
from rtbg.matting import RAW, Matting, Refinement
from rtbg.options import FAILURES
from rtbg.stats import Stats, Stop
from tests.live_parts import (
    COLOR,
    FAULTS,
    Camera,
    Engine,
    H,
    Opener,
    Recording,
    Runner,
    Steps,
    W,
    flat,
    hang,
    ones,
    zeros,
)

ROOM = (90, 54, 240)  # Y, U, V: a red that only the camera shows


@pytest.fixture(scope="module")
def beach(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of green and blue gradients: V stays below 128."""
    path = tmp_path_factory.mktemp("beach") / "beach.png"
    y, x = np.mgrid[0:96, 0:128]
    cv2.imwrite(str(path), np.dstack((x * 2, 128 + y, np.zeros_like(x))).astype(np.uint8))
    return path


def leaks(frame: Frame) -> bool:
    """Whether any of the room is in a picture: its V is 240, the background's below 128."""
    return bool(frame.planes[2].max() > 135)


def flicker(k: int) -> tuple[np.ndarray, ...]:
    """The room, with a moving patch so that no picture is like the one before."""
    planes = flat(*ROOM)
    planes[0][:, (5 * k) % W :] += 40 + k % 60
    return planes


class Play:
    """One run with one fault: at the start, in the middle, during a swap, and as the camera is lost and comes back."""

    def __init__(self, beach: Path, policy: str, fault: Callable[[], Any] | None, refinement: Refinement) -> None:
        self.policy, self.fault, self.refinement = policy, fault, refinement
        self.release = threading.Event()
        self.stop = Stop()
        self.control = Control(quit=self.stop.end)
        self.camera = Camera(flicker, rate=100)
        self.backdrop = Backdrop([str(beach)], self.camera.info, control=self.control)
        self.faulty = 2  # pictures that will go wrong
        self.swap = Swap()
        self.camera_sinks = Recording(), Recording()
        self.recorder = Recording()
        self.injected = 0
        self.mark = 0

    def answer(self, frame: np.ndarray, n: int) -> Any:
        if not self.faulty:
            return zeros()
        self.faulty -= 1
        self.injected += 1
        return hang(self.release, 0.35) if self.fault is None else self.fault()

    def again(self, count: int = 2) -> None:
        self.faulty = count

    def swapped(self) -> None:
        self.swap.put(Matting(Engine(self.answer), self.camera.info, self.refinement))
        self.again(3)

    def unplug(self) -> None:
        self.camera.hold.set()

    def plug(self) -> None:
        self.again()
        self.camera.hold.clear()

    def run(self) -> Stats:
        def well(stats: Stats) -> bool:
            """Pictures have left since the step before, and nothing is wrong."""
            fresh = not self.faulty and not stats.trouble and stats.frames_out >= self.mark + 10
            if fresh:
                self.mark = stats.frames_out
            return fresh

        steps = Steps(
            (well, self.again),
            (well, self.swapped),
            (well, self.unplug),
            (lambda s: "plug it in" in s.trouble, lambda: None),
            (lambda s: "plug it in" in s.trouble, self.plug),
            (well, self.stop.end),
        )
        opener = Opener(lambda k: Engine(self.answer), self.camera.info, self.refinement)
        outputs = [Output(s) for s in self.camera_sinks] + [Output(self.recorder, clocked=False, required=False)]
        stats = run_live(
            self.camera,
            opener,
            self.backdrop,
            outputs,
            on_failure=self.policy,
            control=self.control,
            stop=self.stop,
            swap=self.swap,
            progress=steps,
            patience=0.15,
        )
        assert not steps.steps
        assert any("plug it in" in t for t in steps.seen)
        assert all(e.closed for e in opener.engines)
        return stats


def hidden(play: Play) -> int:
    """Every picture at every sink is the background or black, to the last sample; how many are black."""
    background = play.backdrop.card()
    black = black_planes(Frame(background, 0, play.camera.info.time_base, COLOR))
    for sink in (*play.camera_sinks, play.recorder):
        assert sink.closed
        assert len(sink.frames) > 30
        for frame in sink.frames:
            assert not leaks(frame)
            assert any(
                all(np.array_equal(p, q) for p, q in zip(frame.planes, allowed, strict=True))
                for allowed in (background, black)
            )
    return sum(frame.planes[0].max() == 16 for frame in play.camera_sinks[0].frames)


def check(play: Play, stats: Stats) -> None:
    assert (hidden(play) > 3) == (play.policy == "black")
    assert play.injected == 2 + 2 + 3 + 2
    assert stats.covered > 10, "the card before the start, and while the camera was gone"


@pytest.mark.parametrize("policy", FAILURES)
@pytest.mark.parametrize("part", range(2))
def test_the_room_never_leaves(beach: Path, part: int, policy: str) -> None:
    """All faults, in runs side by side."""
    names = [*FAULTS, "hang"][part::2]
    plays = [Play(beach, policy, FAULTS.get(name), RAW) for name in names]
    with ThreadPoolExecutor(len(plays), thread_name_prefix="runs") as pool:
        for play, stats in zip(plays, pool.map(Play.run, plays), strict=True):
            check(play, stats)


def test_the_room_never_leaves_with_all_refinement(beach: Path) -> None:
    play = Play(beach, "freeze", FAULTS["NaN"], Refinement())
    check(play, play.run())


# The swap that users run: a second runner, compiled meanwhile, takes over inside the engine (`engines.swap`).

WRONG = FAULTS | {"nobody": zeros, "everybody": ones}
LATER = 5  # the call of the second runner before which it was right: about the portrait, the live picture, and twice


def blue(frame: np.ndarray, n: int = 0) -> np.ndarray:
    """A matte of what is blue: somebody in the stored portrait, nobody in the room."""
    return (frame[:, 2:3] > 0.5).astype(np.float32)


class Takeover(Play):
    """One run whose second runner is wrong from its call `since` on, `count` times: 1 is about the stored portrait, 2
    about the live picture it is checked with, and from 3 on it has taken over."""

    def __init__(self, beach: Path, policy: str, name: str, since: int, count: int) -> None:
        super().__init__(beach, policy, WRONG.get(name), RAW)
        self.name, self.since, self.faulty = name, since, count
        self.compiled = threading.Event()
        self.firsts: list[Runner] = []
        self.seconds: list[Runner] = []

    def second(self, frame: np.ndarray, n: int) -> Any:
        if n < self.since or not self.faulty:
            return blue(frame)
        self.faulty -= 1
        self.injected += 1
        if self.fault is not None:
            return self.fault()
        self.release.wait(0.35)
        return blue(frame)

    def opener(self, _shapes: object, cancelled: Callable[[], bool]) -> Runner:
        while not self.compiled.wait(0.01):
            if cancelled():
                raise EngineError("cancelled")
        self.seconds.append(Runner("the second", self.second))
        return self.seconds[-1]

    def open(self) -> Matting:
        self.firsts.append(Runner("the first", blue))
        spec = ModelSpec("test", Path("test.onnx"), ((W, H),))
        return Matting(adapt(spec, Swapping(self.firsts[-1], self.opener)), self.camera.info, RAW)

    @property
    def fails(self) -> bool:
        """Whether its fault is one that the swap itself sees in any call: it raises, or answers nothing of use."""
        return self.name in FAULTS.keys() - {"too large"}

    @property
    def rejected(self) -> bool:
        """Whether the check is to find the fault. That nobody is there is right about the room."""
        return self.since <= 2 and self.name != "hang" and (self.name, self.since) != ("nobody", 2)

    def run(self) -> Stats:
        left = self.since > 2 and self.fails
        ends = "the first" if left or self.rejected else "the second"

        def well(stats: Stats) -> bool:
            return not stats.trouble and stats.frames_out >= self.mark + 10

        def over(stats: Stats) -> bool:
            return bool(self.injected) and (left or not self.faulty) and stats.engine == ends

        def go_on() -> None:
            self.mark = self.steps.last.frames_out

        self.steps = Last((well, self.compiled.set), (over, go_on), (well, self.stop.end), limit=40)
        outputs = [Output(s) for s in self.camera_sinks] + [Output(self.recorder, clocked=False, required=False)]
        stats = run_live(
            self.camera,
            self.open,
            self.backdrop,
            outputs,
            on_failure=self.policy,
            control=self.control,
            stop=self.stop,
            progress=self.steps,
            patience=0.15,
        )
        assert not self.steps.steps
        assert stats.engine == ends
        assert all(runner.closed for runner in (*self.firsts, *self.seconds)), self.name
        return stats


class Last(Steps):
    """Steps that keep what they were last called with."""

    def __call__(self, stats: Stats) -> None:
        self.last = stats
        super().__call__(stats)


def side_by_side(plays: list[Takeover]) -> None:
    with ThreadPoolExecutor(6, thread_name_prefix="runs") as pool:
        list(pool.map(Takeover.run, plays))


@pytest.mark.parametrize("since", [1, 2], ids=["the portrait", "the live picture"])
def test_a_second_runner_that_is_wrong_while_it_is_checked(
    beach: Path, since: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The first goes on, and no picture is lost by it."""
    names = [*WRONG, "hang"]
    plays = [Takeover(beach, FAILURES[k % len(FAILURES)], name, since, 1) for k, name in enumerate(names)]
    with caplog.at_level(logging.INFO):
        side_by_side(plays)
    for play in plays:
        darkness = hidden(play)
        assert not darkness or play.policy == "black"
        assert play.injected == 1 and len(play.firsts) == len(play.seconds) == 1, play.name
    assert "live: matting" not in caplog.text, "nothing came of it but a warning"
    said = [r.getMessage() for r in caplog.records if "is not taken" in r.getMessage()]
    assert len(said) == sum(play.rejected for play in plays)
    assert all("the second is not taken: " in line and "\n" not in line for line in said)


@pytest.mark.parametrize("policy", FAILURES)
def test_a_second_runner_that_is_wrong_once_it_has_taken_over(beach: Path, policy: str) -> None:
    """The first takes over again, or, where it takes the matting to tell, both are opened anew meanwhile. That it sees
    everybody where nobody is cannot be told by anyone: it is what a person in front of the camera looks like."""
    plays = [Takeover(beach, policy, name, LATER, 5) for name in [*WRONG, "hang"] if name != "everybody"]
    side_by_side(plays)
    for play in plays:
        darkness = hidden(play)
        told = not play.fails and play.name not in ("nobody", "hang")
        assert play.injected == (1 if play.fails else 5), play.name
        assert (len(play.firsts) > 1) == told, play.name
        if policy != "black":
            assert not darkness
        elif told:
            assert darkness > 3, play.name


def test_the_detector_sees_a_second_runner_that_is_wrong(beach: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests can fail: without the check, the room is found."""
    monkeypatch.setattr(engines.swap, "TOLERANCE", 2)
    play = Takeover(beach, "card", "everybody", 3, 5)
    play.run()
    assert any(map(leaks, play.camera_sinks[0].frames)) and any(map(leaks, play.recorder.frames))


def test_a_background_that_fails_shows_no_room(beach: Path) -> None:
    play = Play(beach, "card", FAULTS["bug"], RAW)
    play.faulty = 0
    broken = threading.Event()
    inner = play.backdrop.at

    def at(frame: Frame, alpha: np.ndarray) -> Any:
        if broken.is_set():
            raise OSError("the background's disk is gone")
        return inner(frame, alpha)

    play.backdrop.at = at  # type: ignore[method-assign]
    sink = Recording()
    steps = Steps(
        (lambda s: s.frames_out > 5, broken.set),
        (lambda s: "disk is gone" in s.trouble, broken.clear),
        (lambda s: not s.trouble and s.filled > 10, play.stop.end),
    )
    opener = Opener(lambda k: Engine(zeros), play.camera.info)
    run_live(play.camera, opener, play.backdrop, [Output(sink)], stop=play.stop, progress=steps)
    assert not steps.steps
    assert not any(map(leaks, sink.frames))


def test_the_detector_sees_the_room(beach: Path) -> None:
    """These tests can fail: with a matte that says person everywhere, the room is found."""
    play = Play(beach, "card", None, RAW)
    play.camera.count = 20
    sink = Recording()
    run_live(play.camera, Opener(lambda k: Engine(ones), play.camera.info), play.backdrop, [Output(sink)])
    assert any(map(leaks, sink.frames))
    assert not leaks(sink.frames[0])
    assert not leaks(sink.frames[-1]), "a reader that keeps the last picture keeps the card"


def test_a_camera_of_another_size_shows_no_room(beach: Path) -> None:
    """The source breaks its word: nothing of it leaves, and no picture of another size either."""
    play = Play(beach, "card", None, RAW)
    play.camera.draw = lambda k: tuple(np.repeat(p, 2, axis=0) for p in flicker(k)) if k % 20 > 9 else flicker(k)
    sink = Recording()
    steps = Steps((lambda s: "the camera gave" in s.trouble, play.stop.end))
    opener = Opener(lambda k: Engine(zeros), play.camera.info)
    run_live(play.camera, opener, play.backdrop, [Output(sink)], stop=play.stop, progress=steps)
    assert not steps.steps
    assert {f.planes[0].shape for f in sink.frames} == {(H, W)}
    assert not any(map(leaks, sink.frames))


# Picture n leaves only with matte n.

SHADES = 150


def shade(k: int) -> int:
    """Luma of the k-th picture."""
    return 40 + k % SHADES


def share(luma: int) -> float:
    """Alpha that the engine answers for a luma: neighbours are far apart."""
    return 0.2 + 0.6 * ((luma - 40) * 61 % SHADES) / SHADES


def encode(frame: np.ndarray, n: int) -> np.ndarray:
    luma = round(float(frame[0, 1, H // 2, W // 2]) * 219 + 16)
    return np.full((1, 1, H, W), share(luma), np.float32)


def made(k: int, matte_of: int) -> int:
    """Luma of picture k with the matte of another, over white."""
    luma = shade(matte_of)
    alpha = np.full((H, W), cv2.convertScaleAbs(np.array([[share(luma)]], np.float32), alpha=255)[0, 0], np.uint8)
    frame = Frame(flat(shade(k)), 0, Camera(flat).info.time_base, COLOR)
    return int(composite(frame, alpha, flat(235)).planes[0][0, 0])


def test_a_picture_leaves_only_with_its_own_matte() -> None:
    stop = Stop()
    camera = Camera(lambda k: flat(shade(k)), rate=400, nominal=100)
    control = Control(quit=stop.end)
    backdrop = Backdrop(["#ffffff"], camera.info, control=control)
    assert backdrop.card()[0][0, 0] == 235
    pace = np.random.default_rng(7)

    def uneven(frame: np.ndarray, n: int) -> np.ndarray:
        threading.Event().wait(float(pace.choice((0, 0.001, 0.006))))
        return encode(frame, n)

    sinks = Recording(), Recording(slow=0.003), Recording()
    swap = Swap()
    opener = Opener(lambda k: Engine(uneven), camera.info)
    steps = Steps(
        (lambda s: s.frames_out > 150, lambda: swap.put(Matting(Engine(uneven), camera.info))),
        (lambda s: s.frames_out > 300, camera.hold.set),
        (lambda s: bool(s.trouble), camera.hold.clear),
        (lambda s: s.frames_out > 450, stop.end),
    )
    outputs = [Output(sinks[0]), Output(sinks[1]), Output(sinks[2], clocked=False)]
    stats = run_live(
        camera, opener, backdrop, outputs, control=control, stop=stop, swap=swap, progress=steps, on_failure="freeze"
    )
    assert not steps.steps
    expected = [made(k, k) for k in range(SHADES)]
    assert all(made(k, k) != made(k, k + d) for k in range(SHADES) for d in (-3, -2, -1, 1, 2, 3)), "it can fail"
    for sink in sinks:
        numbers = []
        for frame in sink.frames:
            assert all(p.min() == p.max() for p in frame.planes), "one picture, whole"
            luma = int(frame.planes[0][0, 0])
            k = camera.given.get(frame.pts)
            if k is None:  # put in by the clock: an older picture as it was, or the card
                assert luma in (*expected, 235)
            else:
                assert luma == expected[k % SHADES]
                numbers.append(k)
        assert len(numbers) > 150
        assert numbers == sorted(set(numbers)), "in order, none twice"
    assert stats.dropped > 20, "some were dropped on the way"
    assert stats.frames_in == len(camera.given)
