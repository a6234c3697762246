"""rtbg.known: what is known of an array goes with it, and with it alone."""

from __future__ import annotations

import gc
import threading
from fractions import Fraction

import cv2
import numpy as np

from rtbg.backgrounds.blur import BlurBackground
from rtbg.composite import Compositor
from rtbg.foreground import Foreground
from rtbg.frame import Color, Frame, StreamInfo
from rtbg.known import HALVES, Known, halved


def test_it_is_the_object_that_counts() -> None:
    known: Known[str] = Known()
    one, same = np.zeros(5), np.zeros(5)
    assert known.of(one) is None
    known.tell(one, "one")
    assert known.of(one) == "one" and known.of(same) is None and known.of(one[:]) is None
    known.tell(one, "other")
    assert known.of(one) == "other" and len(known) == 1


def test_it_goes_with_the_array() -> None:
    known: Known[int] = Known()
    for k in range(100):
        array = np.zeros(5)
        assert known.of(array) is None, "a new array in the old one's place is not that one"
        known.tell(array, k)
        del array
    gc.collect()
    assert len(known) == 0


def test_from_many_threads() -> None:
    known: Known[int] = Known()
    wrong = []

    def work(seed: int) -> None:
        for k in range(300):
            array = np.zeros(7)
            known.tell(array, seed * 1000 + k)
            if known.of(array) != seed * 1000 + k:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(known) == 0


def test_halves_are_made_once() -> None:
    plane = np.random.default_rng(0).integers(0, 256, (36, 64), np.uint8)
    before = len(HALVES)
    half = halved(plane)
    np.testing.assert_array_equal(half, cv2.resize(plane, (32, 18), interpolation=cv2.INTER_AREA))
    assert halved(plane) is half and halved(plane.copy()) is not half
    quarter = halved(half)
    assert halved(halved(plane)) is quarter
    del plane, half, quarter
    assert len(HALVES) == before


def test_nothing_of_a_background_is_remembered() -> None:
    """The blurred background writes every picture into the same planes: a room's light must not outlive a cut."""
    width, height, tick = 1280, 720, Fraction(1, 30)
    matte = cv2.ellipse(np.zeros((height, width), np.uint8), (640, 720), (300, 500), 0, 0, 360, 255, -1)
    matte = cv2.GaussianBlur(matte, (15, 15), 0)

    def room(luma: int, chroma: int) -> Frame:
        y = np.where(matte > 127, 120, luma).astype(np.uint8)
        u, v = (np.full((height // 2, width // 2), c, np.uint8) for c in (chroma, 128))
        return Frame((y, u, v), 0, tick, Color(), 0.0)

    def shown(*frames: Frame) -> Frame:
        background = BlurBackground(0.5, StreamInfo(width, height, tick, Fraction(30)))
        compositor = Compositor(foreground=Foreground(wrap=0.8))
        return [compositor(f, matte.copy(), background.at(f, matte)) for f in frames][-1]

    alone, after_a_cut = shown(room(16, 60)), shown(room(235, 200), room(16, 60))
    for one, other in zip(alone.planes, after_a_cut.planes, strict=True):
        np.testing.assert_array_equal(one, other)
