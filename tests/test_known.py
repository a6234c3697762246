"""rtbg.known: what is known of an array goes with it, and with it alone."""

from __future__ import annotations

import gc
import threading

import cv2
import numpy as np

from rtbg.known import _HALVES, Known, halved


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
    before = len(_HALVES)
    half = halved(plane)
    np.testing.assert_array_equal(half, cv2.resize(plane, (32, 18), interpolation=cv2.INTER_AREA))
    assert halved(plane) is half and halved(plane.copy()) is not half
    quarter = halved(half)
    assert halved(halved(plane)) is quarter
    del plane, half, quarter
    assert len(_HALVES) == before
