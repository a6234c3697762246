"""What webcams meet, one effect at a time: people of the validation pictures in crowds, against the light, in the dark.

    python -m benchmarks.effects --data PATH [--model NAME|FILE.onnx ...] [--pictures 150]

The pictures are made by `training.data` (so `pip install -e '.[train]'` is needed) of person/val, alpha/val and the
held-out backgrounds, always the same for the same files and number; each by itself, with no past. IoU at 0.5 and MAD
x1e3, means over pictures. Ends with one JSON object. Memory bound: the pictures of one effect.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import engines
from benchmarks.machine import describe
from benchmarks.quality import Predictor, iou
from training.data import NEAR, U8, Augment, Picture, SampleMaker, load_backgrounds, load_pictures_of

SIZE = (384, 224)
PLAIN = Augment(
    composite=0,
    crowd=0,
    empty=0,
    parts=0,
    behind=0,
    before=0,
    headphones=0,
    backlight=0,
    dusk=0,
    wide_angle=0,
    zoom=(0.8, 1.25),
)
EFFECTS = {
    "plain": PLAIN,
    "composite": replace(PLAIN, composite=1),
    "crowd": replace(PLAIN, composite=1, crowd=1),
    "behind": replace(PLAIN, behind=1),
    "before": replace(PLAIN, before=1),
    "headphones": replace(PLAIN, headphones=1, zoom=(0.55, 1.0)),
    "backlight": replace(PLAIN, backlight=1),
    "dusk": replace(PLAIN, dusk=1),
    "wide_angle": replace(PLAIN, wide_angle=1),
}


def samples(people: list[Picture], scenes: list[Picture], effect: str, count: int) -> list[tuple[U8, U8]]:
    """(RGB, matte) pairs of an effect; headsets on people seen from near only."""
    some = [p for p in people if p.name[:3] in NEAR] if effect == "headphones" else people
    maker, rng = SampleMaker(some, scenes, EFFECTS[effect]), np.random.default_rng(5)
    return [maker.sample(rng, *SIZE) for _ in range(count)]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=list(engines.available_models()))
    parser.add_argument("--pictures", type=int, default=150)
    args = parser.parse_args(argv)
    if args.pictures < 1:
        parser.error(f"--pictures {args.pictures}: one at least")
    results: dict[str, Any] = {Path(name).stem: {} for name in args.model}
    try:
        people = load_pictures_of(args.data, "val")
        if not people:
            raise ValueError(f"no validation pictures in {args.data / 'person' / 'val' / 'images'}")
        scenes = load_backgrounds(args.data, held=True)
        opened = {Path(name).stem: engines.load(name) for name in args.model}
    except (engines.EngineError, ValueError) as exc:
        raise SystemExit(f"benchmarks.effects: {exc}") from exc
    print(f"{'':12s}" + "".join(f"{name[:18]:>20s}" for name in opened), "  IoU, MAD x1e3")
    for effect in EFFECTS:
        made = samples(people, scenes, effect, args.pictures)
        for name, engine in opened.items():
            pairs = [(Predictor(engine).still(rgb), truth / np.float32(255)) for rgb, truth in made]
            same, apart = (np.mean([f(a, t) for a, t in pairs]) for f in (iou, lambda a, t: np.abs(a - t).mean()))
            results[name][effect] = {"iou": round(float(same), 4), "mad": round(float(apart) * 1e3, 2)}
        print(f"{effect:12s}" + "".join(f"{r[effect]['iou']:12.4f}{r[effect]['mad']:8.2f}" for r in results.values()))
    for engine in opened.values():
        engine.close()
    settings = {"pictures": args.pictures, "size": SIZE}
    print(json.dumps({"benchmark": "effects", "machine": describe(), "settings": settings, "models": results}))


if __name__ == "__main__":
    main()
