"""What a network takes and gives, where its file lies, and which models are shipped.

A model is NAME.onnx with a card, NAME.json, beside it. The card's keys that matter here: `sizes`, a list of
[width, height], and, optional, `sha256`, the checksum of the file, and, of a shipped model, `graph`, the name of the
file where it is another model's (the same network at other sizes); `engines.segmenter` and `engines.recurrent`
name those for other networks; everything else is for people. Used by `engines.load` and by every engine; reads no
graph itself, the engines do.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.errors import EngineError, ModelError

Array: TypeAlias = npt.NDArray[Any]

logger = logging.getLogger("engines")

MODELS = Path(__file__).parent / "models"
MOST = 8192  # pixels on a side of what a network sees

# The keys of a card that change what a network is given and what is made of its answer.
KEYS = ("sizes", "layout", "colors", "scale", "mean", "std", "activation", "downsample_ratio")


@dataclass(frozen=True)
class ModelSpec:
    """A network as the engines see it.

    It takes one input, `frame`, float32 (1, 4, H, W): RGB in 0..1, then its own raw matte of the picture
    before in 0..1 (all zero: no past). It gives one output, `alpha`, float32 (1, 1, H, W): the matte in 0..1.
    (W, H) is one of `sizes`. `path` is the ONNX file, `card` its JSON card (empty where there is none).

    `kind`: "rtbg" for a file that is such a network by itself; "segmenter" or "recurrent" for one that an adapter
    makes into it and that does not look at the fourth channel (see `engines.signature`)."""

    name: str
    path: Path
    sizes: tuple[tuple[int, int], ...]
    inputs: tuple[str, ...] = ("frame",)
    outputs: tuple[str, ...] = ("alpha",)
    kind: str = "rtbg"
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
    return tuple(sorted(p.stem for p in MODELS.glob("*.json")))


def find_model(model: str | Path) -> ModelSpec:
    """The spec of a shipped model's name or of an ONNX file, as far as its card tells. Raises ModelError.

    A shipped name goes before a file of that name; a Path is always a file. `sizes` is empty where no card names
    them: `engines.signature.recognise`, which sees the graph, fills them in."""
    if isinstance(model, str) and model in available_models():
        card_path = MODELS / f"{model}.json"
        return _describe(MODELS / _read_card(card_path).get("graph", f"{model}.onnx"), card_path)
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


def _describe(path: Path, card_path: Path | None = None) -> ModelSpec:
    """Spec of a file that should exist, from its card where it has one. card_path: None: the one beside it."""
    try:
        if path.stat().st_size == 0:
            raise ModelError(f"{path} is empty: download or export it again")
        path.open("rb").close()
    except OSError as exc:
        raise ModelError(f"{path} cannot be read ({exc.strerror}): check the file and its permissions") from exc
    card_path = card_path or path.with_suffix(".json")
    if card_path == path or not card_path.is_file():
        return ModelSpec(path.stem, path, ())
    card = _read_card(card_path)
    if "sha256" in card and card["sha256"] != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ModelError(f"{path} is not the file that its card {card_path.name} describes: install or export it again")
    sizes = _card_sizes(card, card_path) if "sizes" in card else ()
    return ModelSpec(card_path.stem, path, sizes, card=card)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text("utf-8-sig"))  # Windows' editors put a mark before
    except (OSError, ValueError) as exc:
        raise ModelError(f"the card {path} cannot be read ({exc}): repair it, or move it away") from exc
    if not isinstance(card, dict):
        raise ModelError(f"the card {path} is not a JSON object: repair it, or move it away")
    for key in card.keys() - set(KEYS):
        for known in difflib.get_close_matches(key.lower().replace("-", "_"), KEYS, n=1, cutoff=0.8):
            logger.warning('the card %s says "%s", which is not looked at: did you mean "%s"?', path, key, known)
    return card


def _card_sizes(card: dict[str, Any], path: Path) -> tuple[tuple[int, int], ...]:
    try:
        sizes = tuple((w, h) for w, h in card["sizes"])
    except (KeyError, TypeError, ValueError):
        sizes = ()
    if not sizes or not all(type(side) is int and side > 0 for size in sizes for side in size):
        raise no_sizes(path)
    if (side := max(max(size) for size in sizes)) > MOST:
        raise ModelError(
            f"the card {path} names a size of {side} pixels on a side: {MOST} at most, more fills any memory"
        )
    return sizes


def no_sizes(card: Path) -> ModelError:
    """The error for a card that should name sizes and does not."""
    return ModelError(f'the card {card} names no usable sizes: add "sizes": [[width, height], ...]')


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
