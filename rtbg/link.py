"""The one concurrency primitive: a bounded queue between two stages, with a close that drains and an abort.

Used by `rtbg.pipeline` and `rtbg.live`. Memory bound: `capacity` items.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class LinkAborted(Exception):
    """The link was aborted: the stage that sees this ends at once, quietly."""


class LinkClosed(RuntimeError):
    """Something was put into a link that is closed: the fault of the stage that put it, but in a live run, whose links
    may be closed from outside."""


class Link(Generic[T]):
    """Bounded queue from one stage to the next. Any thread may close or abort it.

    live False: `put` waits for room, nothing is ever dropped.
    live True: `put` never waits and evicts the oldest item when full; `dropped` counts those.
    """

    def __init__(self, capacity: int, *, live: bool = False) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is at least 1, not {capacity}")
        self._items: deque[T] = deque()
        self._capacity, self._live = capacity, live
        self._changed = threading.Condition()
        self._closed = self._aborted = False
        self.dropped = 0

    def put(self, item: T) -> None:
        """Hands an item on. Raises LinkAborted, and LinkClosed: putting into a closed link is a fault of the caller."""
        with self._changed:
            while len(self._items) >= self._capacity and not (self._closed or self._aborted):
                if self._live:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._aborted:
                raise LinkAborted
            if self._closed:
                raise LinkClosed("put into a closed link")
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T | None:
        """The oldest item; None when the link is closed and empty. Raises LinkAborted, and TimeoutError when
        nothing came within `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._closed or self._aborted, timeout):
                raise TimeoutError
            if self._aborted:
                raise LinkAborted
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """End of stream: what is queued can still be read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Now: everything queued is dropped, every waiting `put` and `get` raises LinkAborted."""
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._changed.notify_all()
