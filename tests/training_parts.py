"""A tiny data set, made here, and how the training programmes are run on it: for the tests of `training`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]


def make_data(root: Path) -> Path:
    """Discs on noise: "people" that a network could learn."""
    rng = np.random.default_rng(0)
    for folder, names in {
        "person/train": ["sup0", "sup1", "pic0", "cel0"],
        "person/val": ["sup9", "pic9"],
        "alpha/train": ["ais0"],
        "alpha/val": ["ais9"],
    }.items():
        for kind in ("images", "masks"):
            (root / folder / kind).mkdir(parents=True)
        for name in names:
            image = rng.integers(0, 90, (120, 160, 3), dtype=np.uint8)
            mask = np.zeros((120, 160), np.uint8)
            cv2.circle(mask, (int(rng.integers(50, 110)), 60), 30, 255, -1)
            image[mask > 0] += 120
            cv2.imwrite(str(root / folder / "images" / f"{name}.webp"), image)
            cv2.imwrite(str(root / folder / "masks" / f"{name}.png"), mask)
    (root / "backgrounds").mkdir()
    for k in range(2):
        cv2.imwrite(str(root / "backgrounds" / f"room{k}.webp"), rng.integers(0, 255, (90, 90, 3), dtype=np.uint8))
    return root


def python(*args: object) -> str:
    """What `python -m ARGS` prints; it must end well."""
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-m", *map(str, args)], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout
