"""What a network takes and gives, where its file lies, and which models are shipped.

A model is NAME.onnx with a card, NAME.json, beside it. The card's keys that matter here: `sizes`, a list of
[width, height], and `sha256`, the checksum of the file (optional); everything else is for people. Used by
`engines.load` and by every engine; reads no graph itself, the engines do.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.errors import EngineError, ModelError

Array: TypeAlias = npt.NDArray[Any]

MODELS = Path(__file__).parent / "models"
# For a file without a card whose height and width are free: the sizes that the shipped models use.
DEFAULT_SIZES = ((320, 176), (272, 208), (240, 240), (208, 272), (176, 320))
EXPECTED = "one float32 input (1, 4, H, W) and one float32 output (1, 1, H, W)"


@dataclass(frozen=True)
class ModelSpec:
    """A network as the engines see it.

    It takes one input, `frame`, float32 (1, 4, H, W): RGB in 0..1, then its own raw matte of the picture
    before in 0..1 (all zero: no past). It gives one output, `alpha`, float32 (1, 1, H, W): the matte in 0..1.
    (W, H) is one of `sizes`. `path` is the ONNX file, `card` its JSON card (empty where there is none)."""

    name: str
    path: Path
    sizes: tuple[tuple[int, int], ...]
    inputs: tuple[str, ...] = ("frame",)
    outputs: tuple[str, ...] = ("alpha",)
    card: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def shown_sizes(self) -> str:
        """`320x176, 272x208`, for messages."""
        return ", ".join(f"{w}x{h}" for w, h in self.sizes)


@dataclass(frozen=True)
class Port:
    """An input or output as its file declares it; None in `shape` is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sides = ", ".join("?" if s is None else str(s) for s in self.shape)
        return f"{self.name} {self.dtype} ({sides})"


def nearest_size(sizes: Sequence[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """The (width, height) among `sizes` whose aspect ratio is nearest to that of a picture."""
    aspect = math.log(width / height)
    return min(sizes, key=lambda s: abs(math.log(s[0] / s[1]) - aspect))


def available_models() -> tuple[str, ...]:
    """Names of the shipped models, sorted."""
    return tuple(sorted(p.stem for p in MODELS.glob("*.onnx") if p.with_suffix(".json").is_file()))


def find_model(model: str | Path) -> ModelSpec:
    """The spec of a shipped model's name or of an ONNX file. Raises ModelError.

    A shipped name goes before a file of that name; a Path is always a file."""
    if isinstance(model, str) and model in available_models():
        return _describe(MODELS / f"{model}.onnx")
    path = Path(model)
    try:
        missing = not str(model) or not path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        missing = True
    if missing:
        shipped = ", ".join(available_models()) or "none"
        raise ModelError(
            f"no model and no file is named {str(model)!r}: give a FILE.onnx or a shipped model ({shipped})"
        )
    if path.is_dir():
        raise ModelError(f"{path} is a folder: give a FILE.onnx inside it")
    return _describe(path)


def _describe(path: Path) -> ModelSpec:
    """Spec of a file that exists, from its card where it has one."""
    try:
        if path.stat().st_size == 0:
            raise ModelError(f"{path} is empty: download or export it again")
        path.open("rb").close()
    except OSError as exc:
        raise ModelError(f"{path} cannot be read ({exc.strerror}): check the file and its permissions") from exc
    card_path = path.with_suffix(".json")
    if card_path == path or not card_path.is_file():
        return ModelSpec(path.stem, path, DEFAULT_SIZES)
    card = _read_card(card_path)
    if "sha256" in card and card["sha256"] != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ModelError(f"{path} is not the file that its card {card_path.name} describes: install or export it again")
    return ModelSpec(path.stem, path, _card_sizes(card, card_path), card=card)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"the card {path} cannot be read ({exc}): repair it, or move it away") from exc
    if not isinstance(card, dict):
        raise ModelError(f"the card {path} is not a JSON object: repair it, or move it away")
    return card


def _card_sizes(card: dict[str, Any], path: Path) -> tuple[tuple[int, int], ...]:
    try:
        sizes = tuple((w, h) for w, h in card["sizes"])
    except (KeyError, TypeError, ValueError):
        sizes = ()
    if not sizes or not all(type(side) is int and side > 0 for size in sizes for side in size):
        raise ModelError(f'the card {path} names no usable sizes: add "sizes": [[width, height], ...]')
    return sizes


def fit_signature(spec: ModelSpec, inputs: Sequence[Port], outputs: Sequence[Port]) -> ModelSpec:
    """The spec of a file whose graph was read; names of tensors in the file are free. Raises ModelError.

    A graph of fixed height and width has that one size, which must be among the card's."""
    if not (len(inputs) == len(outputs) == 1 and _is_picture(inputs[0], 4) and _is_picture(outputs[0], 1)):
        found = f"{', '.join(map(str, inputs)) or 'nothing'} -> {', '.join(map(str, outputs)) or 'nothing'}"
        raise ModelError(f"{spec.path} is a network of another kind ({found}): it must have {EXPECTED}")
    (height, width), out = inputs[0].shape[2:], outputs[0].shape[2:]
    if any(a is not None and b is not None and a != b for a, b in zip((height, width), out, strict=True)):
        raise ModelError(
            f"{spec.path} answers another size than it takes ({inputs[0]} -> {outputs[0]}): it must have {EXPECTED}"
        )
    if height is None and width is None:
        return spec
    if not spec.card and height is not None and width is not None:
        return replace(spec, sizes=((width, height),))
    sizes = tuple((w, h) for w, h in spec.sizes if width in (None, w) and height in (None, h))
    if not sizes:
        raise ModelError(f"{spec.path} ({inputs[0]}) takes none of the sizes {spec.shown_sizes}: correct its card")
    return replace(spec, sizes=sizes)


def _is_picture(port: Port, channels: int) -> bool:
    return (
        port.dtype == "float32"
        and len(port.shape) == 4
        and port.shape[0] in (1, None)
        and port.shape[1] in ((channels, None) if channels == 1 else (channels,))
    )


def check_frame(spec: ModelSpec, inputs: Mapping[str, Array]) -> Array:
    """The `frame` of an infer call, if it is what the network takes. Raises EngineError. Values are not looked at."""
    name = spec.inputs[0]
    if len(inputs) != 1 or name not in inputs:
        raise EngineError(f"{spec.name} takes one input, {name!r}; given: {', '.join(map(repr, inputs)) or 'none'}")
    frame = inputs[name]
    if not isinstance(frame, np.ndarray):
        raise EngineError(f"{name!r} is a {type(frame).__name__}: pass a numpy array, float32 (1, 4, H, W)")
    shape = frame.shape
    fits = len(shape) == 4 and shape[:2] == (1, 4) and (shape[3], shape[2]) in spec.sizes
    if not fits or frame.dtype != np.float32:
        raise EngineError(
            f"{name!r} is {frame.dtype} {shape}: pass float32 (1, 4, H, W) with WxH one of {spec.shown_sizes}"
        )
    return frame
