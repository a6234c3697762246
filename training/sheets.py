"""Pictures of a training run: its curve, and a sheet of the worst and of random predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import nn

from training.data import U8
from training.evaluate import Score, predict


def draw_curve(history: list[dict[str, Any]], path: Path) -> None:
    """Validation IoU and MAD and the training loss over the minutes of the run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x = [h["minutes"] for h in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for key in [k for k in ("iou", "iou_sup", "iou_pic") if k in history[-1]]:
        left.plot(x, [h.get(key, np.nan) for h in history], label=key)
    left.set(xlabel="minutes", title="validation IoU")
    left.legend()
    right.plot(x, [h["loss"] for h in history], label="training loss")
    right.plot(x, [10 * h["mad"] for h in history], label="10 x validation MAD")
    right.set(xlabel="minutes")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_sheet(
    model: nn.Module,
    pictures: list[tuple[str, U8]],
    scores: list[Score],
    sizes: Sequence[tuple[int, int]],
    path: Path,
    device: str = "cpu",
) -> None:
    """The 12 worst and 12 evenly spread predictions: picture, truth, prediction, error."""
    order = [int(i) for i in np.resize(np.argsort([s.iou for s in scores])[:12], 12)]
    spread = [int(i) for i in np.linspace(0, len(scores) - 1, 12)]
    tiles = []
    for i in order + spread:
        name, rgba = pictures[i]
        rgb, truth = np.ascontiguousarray(rgba[..., :3]), rgba[..., 3]
        alpha = (predict(model, rgb, sizes, device) * 255).astype(np.uint8)
        panels = [rgb[..., ::-1], *(np.dstack([p] * 3) for p in (truth, alpha, cv2.absdiff(truth, alpha)))]
        k = 120 / rgb.shape[0]
        row = cv2.resize(np.hstack(panels), None, fx=k, fy=k, interpolation=cv2.INTER_AREA)
        tile = np.zeros((120, 760, 3), np.uint8)
        tile[:, : min(760, row.shape[1])] = row[:, :760]
        cv2.putText(tile, f"{name} {scores[i].iou:.2f}", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 255, 255), 1)
        tiles.append(tile)
    half = len(tiles) // 2
    sheet = np.hstack([np.vstack(tiles[:half]), np.vstack(tiles[half:])])
    cv2.imwrite(str(path), sheet, [cv2.IMWRITE_JPEG_QUALITY, 80])
