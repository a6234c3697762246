"""The still gate: sensor noise is no movement, a blink is."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from rtbg.frame import Frame
from rtbg.matting import GAP
from rtbg.stillness import StillGate

TIME_BASE = Fraction(1, 1_000_000)


def scene(width: int, height: int) -> list[np.ndarray]:
    """float32 Y, U, V of a soft picture."""
    rng = np.random.default_rng(5)
    shapes = ((width, height), (width // 2, height // 2), (width // 2, height // 2))
    spans = ((50, 200), (100, 156), (100, 156))
    return [
        cv2.resize(rng.integers(*span, (9, 16)).astype(np.float32), shape, interpolation=cv2.INTER_LINEAR)
        for shape, span in zip(shapes, spans, strict=True)
    ]


def shot(planes: list[np.ndarray], sigma: float, rng: np.random.Generator, seconds: float) -> Frame:
    """What a camera with that noise makes of it."""
    noisy = (p + sigma * rng.standard_normal(p.shape, dtype=np.float32) for p in planes)
    codes = tuple(np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in noisy)
    return Frame(codes, round(seconds * 1e6), TIME_BASE)


@pytest.mark.parametrize("sigma", [0, 1, 2, 4, 6])
def test_noise_is_stillness_and_a_blink_is_not(sigma: float) -> None:
    rng = np.random.default_rng(sigma)
    planes = scene(1280, 720)
    gate = StillGate()
    assert not gate.still(shot(planes, sigma, rng, 1.0))
    gate.inferred()
    still = [gate.still(shot(planes, sigma, rng, 1.0 + k / 30)) for k in range(1, 9)]
    assert sum(still) >= 7, still
    for k in range(8):
        x, y = int(rng.integers(0, 1260)), int(rng.integers(0, 710))
        blink = planes[0].copy()
        blink[y : y + 6, x : x + 12] += 30 if blink[y, x] < 128 else -30
        gate.still(shot(planes, sigma, rng, 2.0 + k))
        gate.inferred()
        assert not gate.still(shot([blink, *planes[1:]], sigma, rng, 2.0 + k + 1 / 30)), f"at {x}, {y}"


@pytest.mark.parametrize("size", [(320, 240), (640, 480), (1280, 720), (1920, 1080), (322, 182), (16, 16)])
def test_every_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    planes = scene(*size)
    gate = StillGate()
    gate.still(shot(planes, 1, rng, 1.0))
    gate.inferred()
    assert gate.still(shot(planes, 1, rng, 1.03))
    moved = [np.roll(p, 4, axis=1) for p in planes]
    assert not gate.still(shot(moved, 1, rng, 1.06))


def test_colour_alone_is_seen() -> None:
    rng = np.random.default_rng(2)
    planes = scene(1280, 720)
    gate = StillGate()
    gate.still(shot(planes, 2, rng, 1.0))
    gate.inferred()
    planes[2][100:116, 200:216] += 12
    assert not gate.still(shot(planes, 2, rng, 1.03))


@pytest.mark.parametrize("change", [0.8, -0.8, 3.0])
def test_a_lamp_or_the_exposure_is_seen(change: float) -> None:
    """Also where every block changes by less than noise would make it, noise being read off the blocks."""
    rng = np.random.default_rng(3)
    planes = scene(1280, 720)
    gate = StillGate()
    gate.still(shot(planes, 4, rng, 1.0))
    gate.inferred()
    assert not gate.still(shot([planes[0] + change, *planes[1:]], 4, rng, 1.03))


def test_slow_movement_adds_up() -> None:
    """Each picture is compared with the one that was inferred, not with the one before."""
    rng = np.random.default_rng(4)
    planes = scene(1280, 720)
    gate = StillGate()
    gate.still(shot(planes, 2, rng, 1.0))
    gate.inferred()
    seen = []
    for k in range(1, 13):
        rising = planes[0].copy()
        rising[300:340, 600:640] += 0.7 * k
        seen.append(gate.still(shot([rising, *planes[1:]], 2, rng, 1.0 + k / 30)))
    assert seen[0]
    assert not seen[-1]


@pytest.mark.parametrize("rate", [5, 15, 30, 60])
def test_never_so_long_that_the_matting_forgets(rate: int) -> None:
    """Inferences are never further apart than the half second after which `rtbg.matting` forgets its past."""
    planes = tuple(p.astype(np.uint8) for p in scene(320, 240))
    gate, inferred = StillGate(), []
    for k in range(3 * rate):
        frame = Frame(planes, round(1e6 * (1 + k / rate)), TIME_BASE)
        if not gate.still(frame):
            gate.inferred()
            inferred.append(frame.seconds)
    assert np.diff(inferred).max() < GAP
    if rate >= 15:
        assert len(inferred) <= 9, "most were not inferred"


def test_forgetting_and_time_that_runs_backwards() -> None:
    planes = tuple(p.astype(np.uint8) for p in scene(320, 240))
    gate = StillGate()
    gate.still(Frame(planes, 1_000_000, TIME_BASE))
    gate.inferred()
    assert gate.still(Frame(planes, 1_030_000, TIME_BASE))
    assert not gate.still(Frame(planes, 1_020_000, TIME_BASE))
    assert not gate.still(Frame(planes, 9_000_000, TIME_BASE))
    gate.inferred()
    gate.forget()
    assert not gate.still(Frame(planes, 9_030_000, TIME_BASE))
