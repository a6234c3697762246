"""Files glued together, whose times start again on the way: which of them a packet belongs to. Used by `Passthrough`.

Memory: the packets that lie between a joint of the sound and the next picture in the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.format import Flags

from rtbg.sources.timing import jump, rate_of

BACK = Fraction(1, 10)  # seconds back in time that are a joint: sound is never in disorder
_GAP = Fraction(1, 10)  # seconds of silence that `seam` makes


def restarts(container: Any) -> bool:
    """Whether times may start again on the way in a container of this kind."""
    return bool(container.format.flags & Flags.ts_discont.value)


def in_parts(packets: Iterator[Any], pictures: Any) -> Iterator[tuple[Any, int]]:
    """The packets of other streams than `pictures`, which are among them, each with the number of joints before it.

    A joint is where the times of the pictures go back. What lies behind the first picture after it belongs there; so
    does what lies between that and the picture before, from where its own times go back."""
    read: deque[Any] = deque()
    joints: list[tuple[int, int]] = []  # where, in bytes, the last picture before each lies, and the first one after
    last: dict[int, Fraction] = {}
    parts: dict[int, int] = {}
    furthest, most = 0, jump(1 / rate_of(pictures))

    def more() -> bool:
        nonlocal furthest
        packet = next(packets, None)
        if packet is None:
            return False
        if packet.stream.index != pictures.index:
            read.append(packet)
        elif packet.dts is not None:
            when, where = packet.dts * packet.time_base, packet.pos or furthest
            if last.get(pictures.index, when) - when > most:
                joints.append((furthest, where))
            last[pictures.index], furthest = when, where
        return True

    while read or more():
        if not read:
            continue
        packet = read.popleft()
        index = packet.stream.index
        where = packet.pos or 0
        part = sum(first <= where for _, first in joints)
        if packet.dts is not None:
            when = packet.dts * packet.time_base
            if last.get(index, when) - when > BACK:
                while furthest <= where and more():
                    pass
                part = sum(before < where for before, _ in joints)
            last[index] = when
        parts[index] = max(part, parts.get(index, 0))
        yield packet, parts[index]


def seam(frame: Any, ended: Fraction) -> list[Any]:
    """What to put for the first frame of sound after a joint, where what came before ends at `ended` seconds: the frame
    without the samples that begin earlier, nothing where all do, or silence for a short gap and the frame."""
    rate = frame.sample_rate
    begins = round(frame.pts * frame.time_base * rate)
    early = round(ended * rate) - begins
    if early >= frame.samples:
        return []
    if early == 0 or early < -_GAP * rate:
        return [frame]
    samples = frame.to_ndarray()
    step = 1 if frame.format.is_planar else frame.layout.nb_channels
    if early > 0:
        return [_sound(frame, samples[:, early * step :], begins + early)]
    silence = np.full((samples.shape[0], -early * step), 128 if samples.dtype == np.uint8 else 0, samples.dtype)
    return [_sound(frame, silence, begins + early), frame]


def _sound(like: Any, samples: Any, pts: int) -> Any:
    made = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=like.format.name, layout=like.layout.name)
    made.sample_rate, made.pts, made.time_base = like.sample_rate, pts, Fraction(1, like.sample_rate)
    return made
