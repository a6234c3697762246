"""The bounded queue, with real threads."""

from __future__ import annotations

import threading
import time

import pytest

from rtbg.link import Link, LinkAborted, LinkClosed


def in_thread(work) -> threading.Thread:  # type: ignore[no-untyped-def]
    thread = threading.Thread(target=work, name="rtbg-test")
    thread.start()
    return thread


def test_order_and_end() -> None:
    link: Link[int] = Link(3)
    got: list[int] = []

    def read() -> None:
        while (item := link.get()) is not None:
            got.append(item)

    thread = in_thread(read)
    for i in range(100):
        link.put(i)
    link.close()
    thread.join(5)
    assert got == list(range(100))
    assert link.dropped == 0
    assert link.get() is None


def test_put_waits_for_room() -> None:
    link: Link[int] = Link(1)
    link.put(1)
    thread = in_thread(lambda: link.put(2))
    time.sleep(0.05)
    assert thread.is_alive()
    assert link.get() == 1
    thread.join(5)
    assert link.get() == 2


def test_live_evicts_the_oldest() -> None:
    link: Link[int] = Link(1, live=True)
    for i in range(5):
        link.put(i)
    assert link.get() == 4
    assert link.dropped == 4


def test_close_drains() -> None:
    link: Link[int] = Link(4)
    link.put(1)
    link.put(2)
    link.close()
    assert [link.get(), link.get(), link.get()] == [1, 2, None]


def test_what_comes_after_the_close_evicts_nothing() -> None:
    link: Link[int] = Link(1, live=True)
    link.put(1)
    link.close()
    with pytest.raises(LinkClosed):
        link.put(2)
    assert [link.get(), link.get(), link.dropped] == [1, None, 0]


@pytest.mark.parametrize("side", ["put", "get"])
def test_abort_wakes_a_waiting_side(side: str) -> None:
    link: Link[int] = Link(1)
    if side == "put":
        link.put(0)
    seen: list[bool] = []

    def wait() -> None:
        try:
            link.put(1) if side == "put" else link.get()
        except LinkAborted:
            seen.append(True)

    thread = in_thread(wait)
    time.sleep(0.05)
    link.abort()
    thread.join(5)
    assert seen == [True]
    with pytest.raises(LinkAborted):
        link.get()


def test_get_times_out() -> None:
    with pytest.raises(TimeoutError):
        Link[int](1).get(timeout=0.02)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="capacity"):
        Link[int](0)
    link: Link[int] = Link(1)
    link.close()
    with pytest.raises(RuntimeError, match="closed"):
        link.put(1)
