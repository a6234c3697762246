"""Chains of arithmetic on a matte's edge, each compiled into one pass.

OpenVINO, which runs the networks, also makes machine code of plain arithmetic: what was forty calls of NumPy and
OpenCV, each with its pass over memory, is one. It takes arrays of a fixed shape, so the edge's cells
(`rtbg.grid.Picked`) go through it some at a time. Used by `rtbg.upsampling`, `rtbg.foreground` and `rtbg.composite`.
Memory bound: for each graph in use the inputs and outputs of `PIXELS` pixels and what lies between them, about 3 MB;
the code of the last `KEPT` graphs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from engines import EngineError
from engines.errors import short_reason
from engines.openvino_engine import import_openvino
from rtbg.errors import MattingError
from rtbg.frame import Array

PIXELS = 1 << 15  # at a time, so that all of it stays in the processor's cache (of large cells 16)
KEPT = 16
_LOCK = threading.Lock()


class Fused:
    """A compiled graph with memory of its own, for any number of rows, which have nothing to do with one another. One
    thread at a time."""

    def __init__(self, build: Callable[..., tuple[list[Any], list[Any]]], *how: Any) -> None:
        """build: `followed` or `painted`; how: what it takes after the first two arguments. Raises MattingError where
        OpenVINO is missing or does not run here."""
        self._inputs: list[Array] = []
        self._outputs: list[Array] = []
        try:
            with _LOCK:  # lru_cache does not keep two threads from compiling the same
                compiled = _compiled(build, *how)
            ov = import_openvino()
            self._request = compiled.create_infer_request()
            for ports, kept, tell in (
                (compiled.inputs, self._inputs, self._request.set_input_tensor),
                (compiled.outputs, self._outputs, self._request.set_output_tensor),
            ):
                for k, port in enumerate(ports):
                    array: Array = np.zeros(tuple(port.shape), port.element_type.to_dtype())
                    tell(k, ov.Tensor(array, shared_memory=True))
                    kept.append(array)
        except (EngineError, RuntimeError) as exc:
            raise _failed(exc) from exc
        self._rows = len(self._outputs[0])
        self._inputs = [kept.reshape(self._rows, -1) for kept in self._inputs]

    def __call__(self, given: Sequence[Array], out: Sequence[Array]) -> None:
        """Makes the outputs of the inputs: arrays of as many rows each. Raises MattingError."""
        count = len(given[0])
        for begin in range(0, count, self._rows):
            end = min(count, begin + self._rows)
            for kept, array in zip(self._inputs, given, strict=True):
                kept[: end - begin] = array[begin:end]
            try:
                self._request.infer(share_outputs=True)
            except RuntimeError as exc:
                raise _failed(exc) from exc
            for made, array in zip(self._outputs, out, strict=True):
                array[begin:end] = made[: end - begin]


class Graphs:
    """The graphs of one step of one stream, each made when it is first asked for. One thread at a time."""

    def __init__(self, build: Callable[..., tuple[list[Any], list[Any]]]) -> None:
        """build: see `Fused`."""
        self._build = build
        self._made: dict[tuple[Any, ...], Fused] = {}

    def of(self, *how: Any) -> Fused:
        """See `Fused`. Of two at most that are remembered, one with and one without a past, or an edge."""
        if how not in self._made:
            if len(self._made) > 1:
                self._made.clear()
            self._made[how] = Fused(self._build, *how)
        return self._made[how]


def _failed(exc: EngineError | RuntimeError) -> MattingError:
    if isinstance(exc, EngineError):  # it says what to do
        return MattingError(str(exc))
    return MattingError(
        f"OpenVINO cannot work on the edge ({short_reason(exc)}): pip install --force-reinstall openvino"
    )


@lru_cache(maxsize=KEPT)
def _compiled(build: Callable[..., tuple[list[Any], list[Any]]], side: int, *how: Any) -> Any:
    ov = import_openvino()
    inputs, outputs = build(ov.opset13, max(16, PIXELS // side**2), side, *how)
    config = {
        "NUM_STREAMS": "0",  # in the thread that calls, with none of its own
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    return _core().compile_model(ov.Model(outputs, inputs), "CPU", config)


@lru_cache(maxsize=1)
def _core() -> Any:
    return import_openvino().Core()


def followed(op: Any, rows: int, side: int, top: int, past: bool, least: int) -> tuple[list[Any], list[Any]]:
    """alpha + rise * luma + base, in whole codes from 0 to 255, where the luma is calmed by a 5x5 Gaussian: a sensor's
    noise, times the slope, would make the edge flicker, and so would rounding.

    In: luma with two samples more above and below and `margin` on both sides, uint8 or uint16 for a `top` code above
    255; alpha (rows, side * side) uint8; rise and base, for codes of luma, (rows, 9) as `Picked.around` gives them;
    with `past` the matte before: a soft pixel that has changed by `least` codes at most keeps what it had.
    Out: the new alpha, uint8 (rows, side * side); its least, greatest and mean values in codes, float32 (rows, 1)."""
    beside = margin(side)
    luma = op.parameter([rows, side + 4, side + 2 * beside], np.uint8 if top < 256 else np.uint16)
    alpha, before = (op.parameter([rows, side * side], np.uint8) for _ in range(2))
    rise, base = (op.parameter([rows, 9], np.float32) for _ in range(2))
    across = op.matmul(op.convert(luma, np.float32), op.constant(_binomial(side, beside)), False, True)
    calm = _flat(op, op.matmul(op.constant(_binomial(side, 2)[None]), across, False, False), rows)
    change = op.add(op.multiply(_enlarged(op, rise, side, side), calm), _enlarged(op, base, side, side))
    new = op.round(op.clamp(op.add(op.convert(alpha, np.float32), change), 0.0, 255.0), "half_to_even")
    if past:
        change = op.subtract(op.convert(before, np.float32), new)
        kept = op.clamp(op.subtract(_number(op, least + 1), op.abs(change)), 0.0, 1.0)
        soft = op.multiply(op.clamp(new, 0.0, 1.0), op.clamp(op.subtract(_number(op, 255), new), 0.0, 1.0))
        new = op.add(new, op.multiply(change, op.multiply(kept, soft)))
    ends = [reduce(new, op.constant(np.array([1])), True) for reduce in (op.reduce_min, op.reduce_max, op.reduce_mean)]
    return [luma, alpha, rise, base, *([before] if past else [])], [op.convert(new, np.uint8), *ends]


def painted(
    op: Any, rows: int, side: int, chroma: tuple[int, int], top: int, own: bool, behind: bool
) -> tuple[list[Any], list[Any]]:
    """The person's colours at the edge (`own`), and these or the camera's blended over what is `behind`.

    In: alpha, uint8 (rows, side * side), where chroma is subsampled with `margin` columns more on both sides; then for
    each plane, Y, U and V, (rows, height * width): the camera's codes, uint8 or uint16 for a `top` code above 255;
    with `behind` the new background's; with `own` the mean colours of the person, and these less the background's,
    (rows, 9) as `Picked.around` gives them. Out: the planes, of the codes' dtype.

    Chroma is blended with alpha as `color.subsample` brings it there, but not rounded to codes. With the means f of the
    person and b of the background Forte's estimate of the person's own colour is F = f + a (I - a f - (1 - a) b), which
    is I + (1 - a) (f - I) + a (1 - a) (f - b); not where nothing of the person is seen."""
    code = np.uint8 if top < 256 else np.uint16
    kx, ky = chroma
    if chroma == (1, 1):
        inputs = [op.parameter([rows, side * side], np.uint8)]
        luma = sited = near = op.convert(inputs[0], np.float32)
    else:
        # Of `ky` rows of alpha, one after the other in memory: the one row of chroma's.
        beside, high, across = margin(side), side // ky, side // kx
        wide = ky * (side + 2 * beside)
        inputs = [op.parameter([rows, side, side + 2 * beside], np.uint8)]
        alpha = op.convert(inputs[0], np.float32)
        ends = (np.array([n]) for n in (beside, beside + side, 1, 2))
        luma = _flat(op, op.slice(alpha, *(op.constant(n) for n in ends)), rows)
        lines, x = op.reshape(alpha, op.constant(np.array([rows * high, wide])), False), np.arange(across)
        matrices = np.zeros((2, ky, side + 2 * beside, across), np.float32)
        for shift, tap, box in ((-1, 1, 0), (0, 2, 1), (1, 1, 1)) if kx == 2 else ((0, 1, 1),):
            matrices[:, :, x * kx + shift + beside, x] = (
                np.array([[tap / (4 if kx == 2 else 1)], [box / kx]])[:, :, None] / ky
            )
        sited, near = (
            _flat(op, op.matmul(lines, op.constant(m.reshape(wide, across)), False, False), rows) for m in matrices
        )
    outputs = []
    for plane, (weight, mean) in enumerate(((luma, luma), (sited, near), (sited, near))):
        high, across = (side, side) if plane == 0 else (side // ky, side // kx)
        inputs.append(op.parameter([rows, high * across], code))
        colour = picture = op.convert(inputs[-1], np.float32)
        if behind:
            inputs.append(op.parameter([rows, high * across], code))
            back = op.convert(inputs[-1], np.float32)
        if own:
            inputs += [op.parameter([rows, 9], np.float32) for _ in range(2)]
            person, apart = (_enlarged(op, nine, high, across) for nine in inputs[-2:])
            part = op.multiply(mean, _number(op, 1 / 255))
            reached = op.clamp(op.multiply(weight, _number(op, 8)), 0.0, 1.0)  # the least weight is an eighth
            way = op.multiply(op.subtract(_number(op, 1), part), reached)
            change = op.add(op.subtract(person, picture), op.multiply(part, apart))
            colour = op.clamp(op.add(picture, op.multiply(way, change)), 0.0, float(top))
        if behind:
            share = op.multiply(weight, _number(op, 1 / 255))
            colour = op.add(back, op.multiply(share, op.subtract(colour, back)))
        outputs.append(op.convert(op.round(colour, "half_to_even"), code))
    return inputs, outputs


def margin(side: int) -> int:
    """Samples beside a cell, 2 to 4, that make its row 16 or as near to it as can be: those NumPy moves fastest."""
    return 4 if side + 8 <= 16 else 3 if side + 6 <= 16 else 2


def _binomial(side: int, more: int) -> Array:
    """float32 (side, side + 2 * more): the weights 1, 4, 6, 4, 1 around each sample, as a mean."""
    taps = np.zeros((side, side + 2 * more), np.float32)
    for k, weight in enumerate((1, 4, 6, 4, 1)):
        taps[np.arange(side), np.arange(side) + more - 2 + k] = weight / 16
    return taps


def _number(op: Any, value: float) -> Any:
    return op.constant(np.float32(value))


def _flat(op: Any, values: Any, rows: int) -> Any:
    return op.reshape(values, op.constant(np.array([rows, -1])), False)


def _enlarged(op: Any, nine: Any, high: int, wide: int) -> Any:
    """(rows, 9) brought to the pixels of a cell bilinearly: (rows, high * wide)."""
    down, across = _between(high), _between(wide)
    matrix = np.einsum("ay,bx->abyx", down, across).reshape(9, -1)
    return op.matmul(nine, op.constant(matrix), False, False)


def _between(size: int) -> Array:
    """float32 (3, size): the weights of three cells' middles at the pixels of the second."""
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(0.5)
    return np.stack([np.maximum(-at, 0), 1 - np.abs(at), np.maximum(at, 0)])
