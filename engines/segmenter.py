"""Other people's segmenters: one picture in, a matte or a score for each pixel out.

What a file's signature leaves open is read from its card, FILE.json beside FILE.onnx, else guessed; what was guessed
is logged as information, and in short as a warning where there is no card. Keys of the card, all optional:

    sizes       [[width, height], ...]  sizes to run at, where the file leaves them free
    layout      "nchw" or "nhwc"        of the input; else from where its 3 channels are
    colors      "rgb" or "bgr"          order of the input's channels; else rgb
    scale       number                  the network gets (picture * scale - mean) / std of a picture in 0..1; 255 for
    mean, std   number or 3 numbers     networks that take 0..255; else 1, 0 and 1. In the order of `colors`
    activation  "none", "sigmoid" or "softmax"   still to be applied to the output; else from one run over a test
                                        picture: values outside 0..1 mean sigmoid (one channel) or softmax (two)

The output may be smaller than the input (it is enlarged bilinearly), (1, C, h, w), (1, h, w, C) or (1, h, w); of two
channels the second is the person. Of several outputs the first is taken. Memory bound: per size one input.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from engines.adapter import Adapter
from engines.errors import ModelError
from engines.runner import Runner
from engines.spec import MODELS, Array, ModelSpec, Port

logger = logging.getLogger("engines")

LAYOUTS = {"nchw": 1, "nhwc": 3}
ACTIVATIONS = ("none", "sigmoid", "softmax")


def picture_axis(port: Port, spec: ModelSpec) -> int | None:
    """The axis of the 3 channels of a segmenter's input: 1 or 3; None where this is none. Raises ModelError for a
    card whose layout is none or not that of the file."""
    if port.dtype != "float32" or len(port.shape) != 4 or port.shape[0] not in (1, None):
        return None
    layout = _choice(spec, "layout", tuple(LAYOUTS))
    if layout is None:
        return next((axis for axis in LAYOUTS.values() if port.shape[axis] == 3), None)
    axis = LAYOUTS[layout]
    if port.shape[axis] != 3 and (port.shape[axis] is not None or 3 in port.shape):
        raise ModelError(f'{spec.path} takes {port}: its card says "layout": "{layout}", correct it')
    return axis


class Segmenter(Adapter):
    """Implements `engines.Engine`; the fourth channel of the frame is not looked at.

    Runs the network once when made. Raises ModelError when the answer is no matte or the card cannot be used."""

    def __init__(self, spec: ModelSpec, runner: Runner) -> None:
        super().__init__(spec, runner)
        axis = picture_axis(runner.inputs[0], spec)
        self._last = axis == 3  # channels last
        self._in, self._out = runner.inputs[0].name, [runner.outputs[0].name]
        scale, mean, std = _numbers(spec, "scale", 1), _numbers(spec, "mean", 0), _numbers(spec, "std", 1)
        if 0 in std:
            raise ModelError(f'the card of {spec.path} says "std": 0: correct it')
        self._order = (2, 1, 0) if _choice(spec, "colors", ("rgb", "bgr")) == "bgr" else (0, 1, 2)
        self._gain = [np.float32(k / s) for k, s in zip(scale, std, strict=True)]
        self._bias = [np.float32(-m / s) for m, s in zip(mean, std, strict=True)]
        self._pictures: dict[tuple[int, int], Array] = {}
        self._activation = "none"
        frame = probe_picture(*spec.sizes[0])
        scores = self._scores(frame)
        if not all(np.isfinite(s).all() for s in scores):
            raise ModelError(f"{spec.path} answers values that are no numbers to a test picture: it cannot be used")
        given = _choice(spec, "activation", ACTIVATIONS)
        self._activation = given or guess_activation(scores)
        takes = "RGB in 0..1"
        if (scale, mean, std) != ((1, 1, 1), (0, 0, 0), (1, 1, 1)):
            shown = [f"{v[0]:g}" if len(set(v)) == 1 else str(list(v)) for v in (scale, mean, std)]
            takes = "(colors in 0..1 * {} - {}) / {}".format(*shown)
        logger.info(
            "%s: a segmenter, %s, takes %s (%s), gives %d channel%s, %.3g to %.3g for a test "
            "picture: activation %s (%s)%s",
            spec.path,
            "nhwc" if self._last else "nchw",
            takes,
            "card"
            if {"scale", "mean", "std"} & set(spec.card)
            else "guessed: if wrong, name scale, mean, std in a card",
            len(scores),
            "s" * (len(scores) > 1),
            min(s.min() for s in scores),
            max(s.max() for s in scores),
            self._activation,
            "card" if given else "guessed",
            f"; the first of {len(runner.outputs)} outputs" if len(runner.outputs) > 1 else "",
        )
        if not spec.card:
            logger.warning(
                "%s has no card: it is assumed to take %s, activation %s; if the matte is wrong, name scale, mean, "
                'std, colors or activation in %s beside it, if not, put {"scale": 1} there',
                spec.path,
                takes,
                self._activation,
                spec.path.with_suffix(".json").name,
            )

    def _answer(self, frame: Array) -> Array:
        scores = self._scores(frame)
        if self._activation == "softmax" and len(scores) == 2:
            alpha = _sigmoid(scores[1] - scores[0])
        elif self._activation == "none":
            alpha = np.clip(scores[-1], 0, 1)
        else:
            alpha = _sigmoid(scores[-1])
        height, width = frame.shape[2:]
        if alpha.shape != (height, width):
            import cv2

            alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(alpha, np.float32)[None, None]

    def _scores(self, frame: Array) -> list[Array]:
        """The output's one or two channels, float32 (h, w) each. Raises ModelError for anything else."""
        (out,) = self._runner.run({self._in: self._picture(frame)}, self._out)
        shape = out.shape
        if len(shape) == 3 and shape[0] == 1:
            scores = [out[0]]
        elif len(shape) == 4 and shape[0] == 1 and {shape[1], shape[3]} & {1, 2}:
            last = shape[3] in (1, 2) and (self._last or shape[1] not in (1, 2))
            scores = list(np.moveaxis(out[0], 2, 0) if last else out[0])
        else:
            scores = []
        height, width = frame.shape[2:]
        if not scores or not (0 < scores[0].shape[0] <= height and 0 < scores[0].shape[1] <= width):
            raise ModelError(
                f"{self.spec.path} answers {shape} to a picture of {width}x{height}: accepted are 1 or 2 channels "
                "(the second is the person), no larger than the picture"
            )
        return scores

    def _picture(self, frame: Array) -> Array:
        """The network's input for a frame."""
        height, width = frame.shape[2:]
        picture = self._pictures.get((height, width))
        if picture is None:
            shape = (1, height, width, 3) if self._last else (1, 3, height, width)
            picture = self._pictures[height, width] = np.empty(shape, np.float32)
        for k, source in enumerate(self._order):
            target = picture[0, :, :, k] if self._last else picture[0, k]
            np.multiply(frame[0, source], self._gain[k], out=target)
            if self._bias[k]:
                target += self._bias[k]
        return picture


def guess_activation(scores: list[Array]) -> str:
    """What is still to be applied to scores like these, one or two channels: one of `ACTIVATIONS`."""
    if all(s.min() >= -1e-3 and s.max() <= 1.001 for s in scores):
        return "none"
    return "softmax" if len(scores) == 2 else "sigmoid"


def probe_picture(width: int, height: int) -> Array:
    """float32 (1, 4, height, width): a portrait (Eileen Collins by NASA, public domain), with no past. Always the
    same. Raises ModelError where it is missing from the installation."""
    import cv2

    portrait = cv2.imread(str(MODELS / "portrait.jpg"))
    if portrait is None:
        raise ModelError(f"{MODELS / 'portrait.jpg'} is missing or damaged: install rtbg again")
    side = portrait.shape[0]
    wide, high = min(side, round(side * width / height)), min(side, round(side * height / width))
    left = (side - wide) // 2
    part = portrait[:high, left : left + wide, ::-1]  # her head is at the top
    frame = np.zeros((1, 4, height, width), np.float32)
    frame[0, :3] = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1) / np.float32(
        255
    )
    return frame


def _sigmoid(scores: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(scores, -40, 40))))


def _choice(spec: ModelSpec, key: str, known: tuple[str, ...]) -> str | None:
    value: Any = spec.card.get(key)
    if value is not None and value not in known:
        raise ModelError(f'the card of {spec.path} says "{key}": {value!r}: it must be one of {", ".join(known)}')
    return None if value is None else str(value)


def _numbers(spec: ModelSpec, key: str, default: float) -> tuple[float, float, float]:
    value: Any = spec.card.get(key, default)
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise ModelError(f'the card of {spec.path} says "{key}": {value!r}: it must be a number or three')
    return (float(values[0]), float(values[1]), float(values[2]))
