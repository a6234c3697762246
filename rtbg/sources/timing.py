"""Times of pictures: one after the other, whatever the file says. Used by `VideoSource`, and what a break in them is,
by the sinks that carry the sound."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import av

# A way back in time longer than the shorter of these is a break (files glued together), not disorder: pictures that a
# muxer gave the times of their decoding are four out of place at most.
_JUMP_PICTURES, _JUMP_SECONDS = 8, 1
_MOST_DELAY = 16  # pictures that a decoder may hold back to bring them in order


class Clock:
    """Stamps the pictures of one stream, in the order they are shown, with strictly increasing times.

    step: average duration of a picture, in ticks. begin: when the stream starts, in ticks. decode_order: the
    container holds only decoding times (AVI).
    A picture without pts gets its dts, less what the first one's dts is after `begin` (the decoder's delay),
    while no picture has had a pts; else the time before plus `step`. One at or before the picture before it
    gets that one's time plus one tick. Where time jumps back (`jump`), all that follows is moved on.
    moves: by how many ticks, after each such jump so far, as `Frame.moves`.
    exact: the latest stamp is the container's. disorder: some stamp had to be corrected.
    last: the latest stamp, also after `restart`, which is for seeks."""

    def __init__(self, step: int, time_base: Fraction, *, begin: int = 0, decode_order: bool = False) -> None:
        self.step, self.decode_order = step, decode_order
        self.last: int | None = None
        self.exact = self.disorder = False
        self._begin, self._jump = begin, max(1, round(jump(step * time_base) / time_base))
        self._delay: int | None = None
        self.restart()

    def restart(self) -> None:
        """The next picture is not compared with those before."""
        self._before: int | None = None
        self._seen_pts = False
        self.moves: tuple[int, ...] = ()

    def stamp(self, pts: int | None, dts: int | None) -> int:
        """The time of the next picture."""
        found = None if self.decode_order else pts
        if found is not None:
            self._seen_pts = True
        elif dts is not None and not self._seen_pts:
            if self._delay is None:
                delay = dts - self._begin
                self._delay = delay if 0 < delay <= _MOST_DELAY * self.step else 0
            found = dts - self._delay
        self.exact = found is not None
        if found is None:
            found = self._begin if self._before is None else self._before + self.step
        elif self.moves:
            found += self.moves[-1]
        if self._before is not None and found <= self._before:
            if self._before - found > self._jump:
                moved = self._before + self.step - found
                self.moves = (*self.moves, moved + self.moves[-1] if self.moves else moved)
                found = self._before + self.step
            else:
                found = self._before + 1
            self.disorder = True
        self._before = self.last = found
        return found


def jump(step: Fraction) -> Fraction:
    """Seconds: times that go back by more are a break. step: seconds that a picture lasts."""
    return min(Fraction(_JUMP_SECONDS), _JUMP_PICTURES * step)


def fraction(seconds: float) -> Fraction:
    """Seconds as they were written: 0.4 is 2/5, not the nearest binary number."""
    return Fraction(repr(float(seconds)))


def rate_of(stream: Any) -> Fraction:
    """Pictures a second of a stream of PyAV: the average, else a guess, else 25. Numbers that only restate the
    time base (browsers' recordings have 1000) do not count."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate < 1000:
            return Fraction(rate)
    return Fraction(25)


def stream_seconds(container: Any, stream: Any) -> Fraction | None:
    """How long a stream of PyAV lasts by what the file declares, None where it does not."""
    tag = declared_end(container, stream)
    if tag is not None:
        seconds = tag - max(0, (stream.start_time or 0) * stream.time_base)
    elif stream.duration:
        seconds = stream.duration * stream.time_base
    else:
        seconds = Fraction(container.duration or 0, av.time_base)
    return seconds if seconds > 0 else None


def declared_end(container: Any, stream: Any) -> Fraction | None:
    """Seconds at which a Matroska file says, in the stream's own tag, that the stream ends."""
    if "matroska" not in container.format.name:
        return None
    found = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return None if found is None else int(found[1]) * 3600 + int(found[2]) * 60 + Fraction(found[3])
