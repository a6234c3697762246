"""Quality of a network on the validation pictures, at its own input sizes, one picture at a time.

Used by `training.train` every epoch and from the command line:

    python -m training.evaluate --data PATH --checkpoint runs/NAME/best.pt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from engines.spec import nearest_size
from training.data import U8
from training.errors import TrainingError, one_line
from training.files import pairs, read_rgba


@dataclass(frozen=True)
class Score:
    """Figures of one picture: IoU of the mattes cut at 0.5, mean absolute difference of the mattes."""

    name: str
    iou: float
    mad: float


def load_validation(data: Path) -> list[tuple[str, U8]]:
    """(name, RGBA) of person/val and alpha/val. Raises TrainingError where there is nothing to give `iou` for."""
    found = pairs(data / "person" / "val") + pairs(data / "alpha" / "val")
    if all(i.stem[:3] == "ais" for i, _ in found):
        images = data / "person" / "val" / "images"
        raise TrainingError(f"no pictures in {images}: some that are not trained on, with masks, must measure it")
    return [(i.stem, read_rgba(i, m)) for i, m in found]


def predict(model: nn.Module, rgb: U8, sizes: Sequence[tuple[int, int]], device: str = "cpu") -> np.ndarray:
    """float32 (H, W) alpha of an RGB picture, with no past, enlarged back bilinearly. `model` is in eval()."""
    height, width = rgb.shape[:2]
    size = nearest_size(sizes, width, height)
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    x = torch.zeros(1, 4, size[1], size[0])
    x[0, :3] = torch.from_numpy(small).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        alpha = model(x.to(device).contiguous(memory_format=torch.channels_last))[0, 0].float().cpu().numpy()
    return np.asarray(cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR))


def score(name: str, alpha: np.ndarray, truth: U8) -> Score:
    """Figures of one matte (float, 0..1) against a truth (uint8). Two empty mattes have IoU 1."""
    a, t = alpha >= 0.5, truth >= 128
    union = int((a | t).sum())
    mad = float(np.abs(alpha - truth.astype(np.float32) / 255).mean())
    return Score(name, int((a & t).sum()) / union if union else 1.0, mad)


def evaluate(
    model: nn.Module, pictures: list[tuple[str, U8]], sizes: Sequence[tuple[int, int]], device: str = "cpu"
) -> list[Score]:
    """Scores of every picture."""
    model.eval()
    return [score(n, predict(model, np.ascontiguousarray(p[..., :3]), sizes, device), p[..., 3]) for n, p in pictures]


def summarize(scores: list[Score]) -> dict[str, float]:
    """Means over person/val together (`iou`, `mad`) and over each group of names (`iou_sup`, `mad_ais`, ...)."""
    groups: dict[str, list[Score]] = {}
    for s in scores:
        groups.setdefault(s.name[:3], []).append(s)
    person = [s for s in scores if s.name[:3] != "ais"]
    out = {"iou": float(np.mean([s.iou for s in person])), "mad": float(np.mean([s.mad for s in person]))}
    for name, group in sorted(groups.items()):
        out[f"iou_{name}"] = float(np.mean([s.iou for s in group]))
        out[f"mad_{name}"] = float(np.mean([s.mad for s in group]))
    return {k: round(v, 5) for k, v in out.items()}


@one_line("training.evaluate")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line: prints the figures of one checkpoint."""
    from training.checkpoint import load_checkpoint

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    args = parser.parse_args(argv)
    model, config = load_checkpoint(args.checkpoint)
    for key, value in summarize(evaluate(model, load_validation(args.data), config.sizes)).items():
        print(f"{key:10s} {value:.4f}")


if __name__ == "__main__":
    main()
