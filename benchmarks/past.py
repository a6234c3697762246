"""What the past matte does for a network that takes one: calm in motion, no ghosts after a cut, no drift on a still.

    python -m benchmarks.past --data PATH [--model NAME|FILE.onnx ...] [--pictures N] [--stills N] [--repeats N]

Raw mattes of the network through `engines`, nothing after it. Each figure with the network's own matte of the picture
before, and beside it with an empty one for every picture:

    dtSSD, flicker    on `benchmarks.scenes` (cut-outs animated over moving backgrounds, exact truth) and video/val;
                      flicker: mean absolute change from picture to picture, x1e3, where the truth does not change
    MAD               on the same scenes, x1e3: calm must not be bought with wrong mattes
    cut               a portrait for ten pictures, then a background without people: what of the empty picture is taken
                      for a person, x1e3, in the first picture after the cut, the fifth, and with no past at all
    repeats           person/val pictures, each --repeats times: mean absolute difference, x1e3, between the last and
                      the first matte, and between both and the truth (a drift is a last one that is worse)

Ends with one JSON object. Memory bound: what `benchmarks.scenes` keeps of one scene.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import engines
from benchmarks import metrics
from benchmarks.machine import describe
from benchmarks.quality import Predictor, check, empty_scenes, mean, pairs, read_alpha, read_rgb, score_video, spread
from benchmarks.scenes import animated
from engines.spec import Array
from rtbg.color import planes_to_rgb

SIZE = (640, 360)
BEFORE, AFTER = 10, 5  # pictures before a cut and after it


class Forgetful(Predictor):
    """The same network with an empty past for every picture."""

    def next(self, rgb: Array) -> Array:
        """As `Predictor.next`."""
        self.forget()
        return super().next(rgb)


def moving(run: Predictor, data: Path, pictures: int) -> dict[str, float]:
    """Figures on every animated scene; means over scenes."""
    scenes = len(pairs(data / "alpha" / "val"))
    found: dict[str, list[float]] = {"dtssd": [], "flicker": [], "mad": []}
    for index in range(scenes):
        run.forget()
        rows: dict[str, list[float]] = {key: [] for key in found}
        last: tuple[Array, Array] | None = None
        for picture in animated(data, index, pictures, SIZE):
            pred, true = run.next(planes_to_rgb(picture.frame.planes, picture.frame.color)), picture.alpha
            rows["mad"].append(metrics.mad(pred, true))
            if last is not None:
                rows["dtssd"].append(metrics.dtssd(pred, last[0], true, last[1]))
                still = np.abs(true - last[1]) < 1 / 255
                rows["flicker"].append(1000 * float(np.abs(pred - last[0])[still].mean()))
            last = pred, true
        for key, values in rows.items():
            found[key].append(mean(values))
    return {key: mean(values) for key, values in found.items()}


def cuts(run: Predictor, data: Path) -> dict[str, float]:
    """Mean alpha of empty pictures after a portrait."""
    first, later = [], []
    portraits = [read_rgb(i) for i, _ in pairs(data / "alpha" / "val")]
    for k, scene in enumerate(empty_scenes(data)):
        run.forget()
        for _ in range(BEFORE):
            run.next(portraits[k % len(portraits)])
        behind = read_rgb(scene)
        ghosts = [float(run.next(behind).mean()) for _ in range(AFTER)]
        first.append(ghosts[0])
        later.append(ghosts[-1])
    return {"cut_first": 1000 * mean(first), "cut_fifth": 1000 * mean(later)}


def repeats(run: Predictor, data: Path, stills: int, times: int) -> dict[str, float]:
    """How far mattes of a picture that is shown over and over move."""
    found: dict[str, list[float]] = {"drift": [], "drift_first": [], "drift_last": []}
    for image, mask in spread(pairs(data / "person" / "val"), stills):
        rgb, true = read_rgb(image), read_alpha(mask)
        first = last = run.still(rgb)
        for _ in range(times - 1):
            last = run.next(rgb)
        for key, a, b in (("drift", last, first), ("drift_first", first, true), ("drift_last", last, true)):
            found[key].append(1000 * float(np.abs(a - b).mean()))
    return {key: mean(values) for key, values in found.items()} | {"drift_worst": max(found["drift"])}


def measure(model: str, data: Path, pictures: int, stills: int, times: int) -> dict[str, dict[str, float]]:
    """Every figure of one model, with and without its past."""
    found = {}
    engine = engines.load(model)
    try:
        for name, run in (("past", Predictor(engine)), ("none", Forgetful(engine))):
            figures = moving(run, data, pictures) | score_video(run, data, None) | cuts(run, data)
            if name == "past":
                figures |= repeats(run, data, stills, times)
            found[name] = {key: round(value, 3) for key, value in figures.items()}
    finally:
        engine.close()
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line a figure: with the past, without."""
    lines = []
    for model, found in results.items():
        lines.append(f"{model:32s} {'with past':>10s} {'without':>10s}")
        for key, value in found["past"].items():
            without = f"{found['none'][key]:10.3f}" if key in found["none"] else f"{'-':>10s}"
            lines.append(f"  {key:30s} {value:10.3f} {without}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", help="names or ONNX files (default: shipped)")
    parser.add_argument("--pictures", type=int, default=120, help="of each animated scene")
    parser.add_argument("--stills", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args(argv)
    if args.pictures < 2 or args.stills < 1 or args.repeats < 1:
        parser.error("--pictures must be 2 at least, --stills and --repeats 1")
    models = args.model or list(engines.available_models())
    results = {}
    try:
        check(args.data)
        for model in models:
            results[Path(model).stem] = measure(model, args.data, args.pictures, args.stills, args.repeats)
    except (engines.EngineError, OSError, ValueError) as exc:
        raise SystemExit(f"benchmarks.past: {' '.join(str(exc).split())}") from exc
    print(table(results))
    settings = {"pictures": args.pictures, "stills": args.stills, "repeats": args.repeats}
    print(json.dumps({"benchmark": "past", "machine": describe(), "settings": settings, "models": results}))


if __name__ == "__main__":
    main()
