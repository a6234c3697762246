"""Every way that a live run ends, and what fails in it without ending it, with real threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines import EngineError
from rtbg.clock import Cover, Outlet
from rtbg.composer import Composer, Swap
from rtbg.composite import Compositor
from rtbg.errors import Aborted, BackgroundError, InputError, MattingError
from rtbg.frame import Frame
from rtbg.live import Output, _Run, run_live
from rtbg.matting import Matting
from rtbg.stats import Stats
from rtbg.stillness import StillGate
from tests.live_parts import BEHIND, CARD, FAULTS, Engine, Recording, Setup, after, hang, lumas, ones


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
        self.took = time.perf_counter()
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
            self.took = time.perf_counter() - self.took


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
    deadline = time.perf_counter() + 5
    while not all(e.closed for e in engines) and time.perf_counter() < deadline:
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


def test_a_network_that_is_long_being_prepared_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver that hangs in the first inference; the card is shown meanwhile."""
    monkeypatch.setattr("rtbg.live.PREPARED", 0.2)
    release = threading.Event()
    setup = Setup(rate=50)

    def slow() -> Matting:
        assert release.wait(20)
        return setup.opener()

    setup.run(
        (lambda s: "still being prepared after" in s.trouble, release.set),
        (lambda s: not s.trouble and s.frames_out > 20, setup.stop.end),
        opener=slow,
    )
    assert lumas(setup.sink)[0] == CARD


def test_pictures_that_fail_are_dropped() -> None:
    """Every picture that came has left or is counted."""
    setup = Setup(rate=50, count=60, answer=lambda f, n: FAULTS["engine error"]() if n % 2 else ones())
    stats = setup.run()
    assert stats.frames_in == 60
    assert stats.frames_out + stats.dropped == 60
    assert stats.dropped >= sum(e.calls for e in setup.opener.engines) // 2 > 3


def test_trouble_of_the_gate_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(rate=50)
    broken = threading.Event()
    inner = StillGate.still

    def still(gate: StillGate, frame: Frame) -> bool:
        if broken.is_set():
            raise ZeroDivisionError("the gate is broken")
        return inner(gate, frame)

    monkeypatch.setattr(StillGate, "still", still)
    setup.run(
        (after(5), broken.set),
        (lambda s: "the gate is broken" in s.trouble, broken.clear),
        (lambda s: not s.trouble and s.frames_out > 20, setup.stop.end),
    )


def test_no_trouble_is_told_of_what_is_not_asked_while_frozen() -> None:
    broken = threading.Event()
    setup = Setup(rate=50, answer=lambda f, n: FAULTS["engine error"]() if broken.is_set() else ones())
    setup.run(
        (after(5), broken.set),
        (lambda s: "the device is lost" in s.trouble, lambda: setup.control.press("space")),
        (lambda s: not s.trouble, lambda: setup.control.press("space")),
        (lambda s: "the device is lost" in s.trouble, broken.clear),
        (lambda s: not s.trouble and s.frames_out > 20, setup.stop.end),
    )


class Returning(_Run):
    """A run whose reader comes back while it is looked at."""

    moments: tuple[float, ...] = ()

    @property
    def reading(self) -> float:
        now, *rest = self.moments or (0.0,)
        self.moments = tuple(rest)
        return now

    @reading.setter
    def reading(self, moment: float) -> None: ...


def test_a_read_that_comes_back_while_it_is_looked_at() -> None:
    setup = Setup()
    cover = Cover(setup.backdrop.card(), setup.camera.info, on_failure="card", patience=0.5)
    composer = Composer(setup.opener, setup.backdrop, Compositor(), cover, setup.control, Swap(), True)
    outlets = [Outlet(Output(setup.sink), cover, setup.control, setup.camera.info)]
    run = Returning(setup.camera, composer, outlets, cover, setup.stop)
    run.moments = (time.perf_counter() - 4,)
    run._watch(None, True)
    told, seconds, _ = cover.trouble.rsplit(" ", 2)
    assert told == "the camera's driver has not answered for"
    assert 4 <= int(seconds) < 60, "not the whole of the clock"


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


def test_an_engine_whose_matting_cannot_be_reset_is_closed_before_another_is_opened() -> None:
    class Stubborn(Matting):
        def reset(self) -> None:
            raise RuntimeError("it cannot be reset")

    setup = Setup(rate=100)
    setup.opener.make = lambda k: Engine(ones if k > 2 else lambda f, n: ones() if n < 5 else FAULTS["engine error"]())

    def stubborn() -> Matting:
        matting = setup.opener()
        return Stubborn(matting.engine, setup.opener.info)

    setup.run((lambda s: s.frames_out > 20, setup.stop.end), opener=stubborn)
    assert len(setup.opener.engines) == 4
    assert all(e.closed == 1 for e in setup.opener.engines)


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


def test_the_progress_callback_may_fail() -> None:
    setup = Setup()

    def progress(stats: Stats) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_live(setup.camera, setup.opener, setup.backdrop, [Output(setup.sink)], progress=progress)
    assert setup.all_closed()
