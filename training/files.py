"""Pictures and masks of the data set's folders: which belong together, and what of them cannot be used.

Used by all that reads the data. Memory bound: one picture.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from training.errors import TrainingError
from training.split import pictures

U8 = npt.NDArray[np.uint8]


def read_rgba(image: Path, mask: Path | None) -> U8:
    """uint8 (H, W, 4): RGB of `image` and, as the fourth channel, `mask` (zero when None)."""
    bgr = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if bgr is None:
        raise TrainingError(f"cannot read {image}: it is no picture, or damaged; replace it or take it away")
    rgba = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGBA)
    h, w = bgr.shape[:2]
    alpha = np.zeros((h, w), np.uint8) if mask is None else read_mask(mask)
    if alpha.shape != (h, w):
        high, wide = alpha.shape
        if abs(wide * h - high * w) > max(wide, high) + max(w, h):  # more than a pixel of rounding
            raise TrainingError(f"{mask} is {wide}x{high}, its picture {w}x{h} (upright): both must show the same")
        alpha = np.asarray(cv2.resize(alpha, (w, h), interpolation=cv2.INTER_LINEAR), np.uint8)
    rgba[..., 3] = alpha
    return np.ascontiguousarray(rgba, dtype=np.uint8)


def read_mask(path: Path) -> U8:
    """uint8 (H, W), 0 background, 255 person. Raises TrainingError for what would be taken for nobody or for noise."""
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.exists() else None
    if mask is None:
        fault = "cannot be read" if path.exists() else "is missing"
        raise TrainingError(f"{path} {fault}: each picture in images/ needs a grey PNG of its name in masks/")
    if mask.ndim == 3 and mask.shape[2] == 4 and mask[..., 3].min() < (255 if mask.dtype == np.uint8 else 65535):
        raise TrainingError(f"{path} is partly transparent: save its alpha channel as a grey picture instead")
    plain = mask.ndim == 2 and mask.dtype == np.uint8
    grey = np.asarray(mask if plain else cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
    if 0 < (brightest := int(grey.max())) < 128:
        raise TrainingError(f"{path} is nowhere brighter than {brightest}: 0 is background, 255 a person, not a label")
    return grey


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    """(image, mask) paths of a folder with `images/NAME.webp` (or another of SUFFIXES) and `masks/NAME.png`, by name.
    Raises TrainingError for two pictures of one name."""
    found = pictures(folder / "images")
    first: dict[str, Path] = {}
    for path in found:
        if (other := first.setdefault(path.stem, path)) != path:
            raise TrainingError(f"{other} and {path.name} would have one mask: rename one of them")
    return [(p, folder / "masks" / f"{p.stem}.png") for p in found]
