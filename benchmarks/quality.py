"""How good each model is: the shipped ones and, as peers, the files in PATH/models, on pictures with a known truth.

    python -m benchmarks.quality --data PATH [--model NAME|FILE.onnx ...] [--limit N] [--engine auto] [--precision auto]

Every model runs through `engines` alone (no smoothing, no guided upsampling: this judges networks): the picture is
reduced to the nearest of its sizes (area), its matte enlarged back (bilinear) and compared at the picture's own size.

    sup, pic     person/val: mean IoU of the mattes cut at 0.5 (an empty union counts 1); no past
    alpha        alpha/val, true alpha: MAD x1e3, Grad, Conn as in `benchmarks.metrics`; no past
    comp         those cut-outs over SCENES backgrounds each, by turns as they are and in a 16:9 one
    video        video/val: IoU and dtSSD inside a margin round the mask (further people are not labelled), the past
                 carried: the raw matte of the frame before, or a recurrent network's own state
    empty        backgrounds without people, the tenth that `held_out` names: mean alpha x1e3 (false person)
    cost         parameters, GFLOPs (2 x multiply-adds of convolutions and matrix products, counted in the ONNX graph
                 at the size nearest 16:9), ms a picture at that size on one and on two threads (median)

`closely` is no network: it is what rtbg does with a picture that is no video (`rtbg.matting.look_closely`): two of the
shipped ones look at it four times each.

What a set does not hold, and the cost of a graph that cannot be counted, is `-` (JSON: null). Ends with one line on
stderr where a folder is missing or a file cannot be read.

--limit N takes N pictures of each set, evenly spaced (video: the first N frames of each clip). The last line is one
JSON object. Memory bound: one picture and its truth.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

import engines
from benchmarks import metrics
from benchmarks.graph import count
from benchmarks.machine import describe
from benchmarks.scenes import cut_out
from engines.spec import Array
from rtbg.api import PAIRS
from rtbg.color import rgb_to_planes
from rtbg.frame import BT709, FULL, Color, Frame, StreamInfo
from rtbg.matting import Look, look_closely
from rtbg.options import Options
from training.split import held_out, pictures

T = TypeVar("T")

SCENES = 4  # backgrounds behind each cut-out
WIDE = (640, 360)
MARGIN = 0.08  # of the diagonal
CLOSELY = "closely"
COLOR = Color(BT709, FULL)
COLUMNS = (
    ("sup IoU", "iou_sup", ".4f"),
    ("pic IoU", "iou_pic", ".4f"),
    ("alpha MAD", "alpha_mad", ".2f"),
    ("Grad", "alpha_grad", ".2f"),
    ("Conn", "alpha_conn", ".2f"),
    ("comp MAD", "comp_mad", ".2f"),
    ("Grad", "comp_grad", ".2f"),
    ("Conn", "comp_conn", ".2f"),
    ("video IoU", "video_iou", ".4f"),
    ("dtSSD", "video_dtssd", ".2f"),
    ("empty", "empty_alpha", ".2f"),
    ("params", "parameters", ",d"),
    ("GFLOPs", "gflops", ".3f"),
    ("ms 1t", "ms_1", ".2f"),
    ("ms 2t", "ms_2", ".2f"),
)


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items, evenly spaced, the first always."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[k * len(items) // limit] for k in range(limit)]


def read_rgb(path: Path) -> Array:
    """uint8 (H, W, 3). Raises ValueError."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"cannot read {path}")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def read_alpha(path: Path) -> Array:
    """float32 (H, W) in 0..1. Raises ValueError."""
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ValueError(f"cannot read {path}")
    return mask.astype(np.float32) / 255


def pairs(folder: Path, prefix: str = "") -> list[tuple[Path, Path]]:
    """(image, mask) paths of `images/NAME.*` and `masks/NAME.png`, by name. Raises OSError."""
    images = sorted(p for p in (folder / "images").iterdir() if p.name.startswith(prefix) and p.name[0] != ".")
    return [(p, folder / "masks" / f"{p.stem}.png") for p in images]


def empty_scenes(data: Path) -> list[Path]:
    """The held-out backgrounds, by name. Raises ValueError where there is none."""
    scenes = [p for p in pictures(data / "backgrounds") if held_out(p.stem)]
    if not scenes:
        raise ValueError(f"{data / 'backgrounds'} holds no picture of those that are held out from training")
    return scenes


def check(data: Path) -> None:
    """Raises ValueError where a folder that is read is missing, before any model has run."""
    folders = [Path(f"{a}/val/{b}") for a in ("person", "alpha") for b in ("images", "masks")]
    for folder in (*folders, Path("video/val"), Path("backgrounds")):
        if not (data / folder).is_dir():
            raise ValueError(f"{data / folder} is missing: --data names the folder that holds {folder}")
    empty_scenes(data)


class Predictor:
    """An engine as this benchmark drives it: RGB pictures in, mattes of their size out."""

    def __init__(self, engine: engines.Engine) -> None:
        self.engine = engine
        self._past: Array | None = None

    def forget(self) -> None:
        """Before a picture that does not follow the one before."""
        self._past = None
        if isinstance(self.engine, engines.StatefulEngine):
            self.engine.reset()

    def next(self, rgb: Array) -> Array:
        """float32 (H, W) alpha of an RGB picture uint8 (H, W, 3), with the past that there is."""
        height, width = rgb.shape[:2]
        size = engines.nearest_size(self.engine.spec.sizes, width, height)
        frame = np.zeros((1, 4, size[1], size[0]), np.float32)
        small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        frame[0, :3] = small.transpose(2, 0, 1).astype(np.float32) / 255
        if self._past is not None and self._past.shape == frame.shape[2:]:
            frame[0, 3] = self._past
        self._past = self.engine.infer({"frame": frame})["alpha"][0, 0].copy()
        return np.asarray(cv2.resize(self._past, (width, height), interpolation=cv2.INTER_LINEAR))

    def still(self, rgb: Array) -> Array:
        """`next` for a picture by itself."""
        self.forget()
        return self.next(rgb)


class Closely(Predictor):
    """The networks of `rtbg.api.PAIRS`, as a picture that is no video is looked at."""

    def __init__(self, runners: Sequence[engines.Engine]) -> None:
        super().__init__(runners[0])
        self._runners = runners

    def next(self, rgb: Array) -> Array:
        """See `Predictor.next`; there is no past."""
        height, width = rgb.shape[:2]
        info = StreamInfo(width, height, Fraction(1), Fraction(1), COLOR, chroma=(1, 1))
        planes = rgb_to_planes(rgb, COLOR, height=height, bits=8, chroma=(1, 1))
        matte = look_closely([Look(r, info) for r in self._runners], Frame(planes, 0, Fraction(1), COLOR))
        return np.asarray(cv2.resize(matte, (width, height), interpolation=cv2.INTER_LINEAR))


def iou(pred: Array, true: Array) -> float:
    """Of two mattes cut at 0.5; 1 where both are empty."""
    a, b = pred >= 0.5, true >= 128 / 255
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def composites(data: Path, limit: int | None) -> Iterator[tuple[Array, Array]]:
    """(RGB uint8, true alpha): each cut-out of alpha/val over held-out backgrounds, by turns as it is and in a 16:9
    picture. Always the same for the same files and limit."""
    scenes = empty_scenes(data)
    rng = np.random.default_rng(3)
    for image, mask in spread(pairs(data / "alpha" / "val"), limit):
        person, alpha = cut_out(image, mask)
        for turn in range(SCENES):
            scene = read_rgb(scenes[int(rng.integers(len(scenes)))]).astype(np.float32)
            share, shift = rng.uniform(0.6, 1.0), rng.uniform(-0.2, 0.2)
            front, cover = at_a_desk(person, alpha, share, shift) if turn % 2 else (person, alpha)
            behind = fill(scene, (cover.shape[1], cover.shape[0]))
            rgb = behind + (front - behind) * cover[..., None]
            yield np.clip(np.rint(rgb), 0, 255).astype(np.uint8), cover


def at_a_desk(person: Array, alpha: Array, share: float, shift: float) -> tuple[Array, Array]:
    """A cut-out (float32 colours and alpha) placed in a 16:9 picture, standing on its lower edge: `share` as tall,
    `shift` of the width off the middle; or, where its own picture cuts it off at a side, as wide as the new one,
    from a little above the head (a straight cut within the picture would be a shape that no camera sees)."""
    height, width = alpha.shape
    cut = max(alpha[:, 0].mean(), alpha[:, -1].mean()) > 0.02
    k = WIDE[0] / width if cut else share * WIDE[1] / height
    size = (round(k * width), round(k * height))
    x, y = round(WIDE[0] * (0.5 + shift) - size[0] / 2), WIDE[1] - size[1]
    if cut:
        head = int(np.argmax(alpha.max(axis=1) > 0.5)) * k
        x, y = 0, max(y, min(0, round(0.12 * WIDE[1] - head)))
    move = np.array([[1, 0, x], [0, 1, y]], np.float32)
    how = cv2.INTER_AREA if k < 1 else cv2.INTER_LINEAR
    colours, cover = cv2.resize(person, size, interpolation=how), cv2.resize(alpha, size, interpolation=how)
    colours = cv2.warpAffine(colours, move, WIDE, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(colours), np.asarray(cv2.warpAffine(cover, move, WIDE, flags=cv2.INTER_NEAREST))


def fill(scene: Array, size: tuple[int, int]) -> Array:
    """The middle of a picture, scaled so that it covers (width, height)."""
    h, w = scene.shape[:2]
    k = max(size[0] / w, size[1] / h)
    wide, tall = max(size[0], round(k * w)), max(size[1], round(k * h))
    big = cv2.resize(scene, (wide, tall), interpolation=cv2.INTER_AREA if k < 1 else cv2.INTER_LINEAR)
    x, y = (wide - size[0]) // 2, (tall - size[1]) // 2
    return np.asarray(big[y : y + size[1], x : x + size[0]])


def score_people(run: Predictor, data: Path, limit: int | None) -> dict[str, float]:
    """Mean IoU on person/val, by group."""
    found = {}
    for group in ("sup", "pic"):
        some = spread(pairs(data / "person" / "val", group), limit)
        found[f"iou_{group}"] = mean(iou(run.still(read_rgb(i)), read_alpha(m)) for i, m in some)
    return found


def score_alpha(run: Predictor, data: Path, limit: int | None) -> dict[str, float]:
    """MAD, Grad, Conn on alpha/val and on composites of it."""
    plain = ((read_rgb(i), read_alpha(m)) for i, m in spread(pairs(data / "alpha" / "val"), limit))
    figures: dict[str, Callable[[Array, Array], float]] = {
        "mad": metrics.mad,
        "grad": metrics.grad,
        "conn": metrics.conn,
    }
    found: dict[str, float] = {}
    for name, shown in (("alpha", plain), ("comp", composites(data, limit))):
        scores: dict[str, list[float]] = {key: [] for key in figures}
        for rgb, true in shown:
            pred = run.still(rgb)
            for key, figure in figures.items():
                scores[key].append(figure(pred, true))
        found |= {f"{name}_{key}": mean(values) for key, values in scores.items()}
    return found


def score_video(run: Predictor, data: Path, limit: int | None) -> dict[str, float]:
    """IoU and dtSSD inside a margin on video/val, the mean of its clips' means."""
    ious, dtssds = [], []
    for clip in sorted(p for p in (data / "video" / "val").iterdir() if p.is_dir()):
        run.forget()
        found: tuple[list[float], list[float]] = ([], [])
        last: tuple[Array, Array, Array] | None = None
        for image, mask in pairs(clip)[:limit]:
            pred, true = run.next(read_rgb(image)), read_alpha(mask)
            radius = round(MARGIN * float(np.hypot(*true.shape)))
            seen = (true > 0).astype(np.uint8)
            near = np.asarray(cv2.boxFilter(seen, cv2.CV_32F, (2 * radius + 1, 2 * radius + 1))) > 0
            found[0].append(iou(pred[near], true[near]))
            if last is not None:
                both = near & last[2]
                arrays = (a[both].reshape(1, -1) for a in (pred, last[0], true, last[1]))
                found[1].append(metrics.dtssd(*arrays))
            last = pred, true, near
        ious.append(mean(found[0]))
        dtssds.append(mean(found[1]))
    return {"video_iou": mean(ious), "video_dtssd": mean(dtssds)}


def score_empty(run: Predictor, data: Path, limit: int | None) -> dict[str, float]:
    """Mean alpha x1e3 on held-out backgrounds, and the share of them with more than 1 % of the picture over 0.5."""
    mattes = [run.still(read_rgb(p)) for p in spread(empty_scenes(data), limit)]
    return {
        "empty_alpha": 1000 * mean(float(m.mean()) for m in mattes),
        "empty_wrong": mean(float((m >= 0.5).mean() > 0.01) for m in mattes),
    }


SCORES = (score_people, score_alpha, score_video, score_empty)


def mean(values: Iterator[float] | Sequence[float]) -> float:
    """Arithmetic mean; nan of nothing."""
    found = list(values)
    return float(np.mean(found)) if found else float("nan")


@contextmanager
def opened(model: str, **options: Any) -> Iterator[Predictor]:
    """The predictor of a model, or of `CLOSELY`; its engines are closed in the end. Raises EngineError."""
    with ExitStack() as stack:
        names = PAIRS[Options().model] if model == CLOSELY else (model,)
        runners = [stack.enter_context(closing(engines.load(name, **options))) for name in names]
        yield Closely(runners) if model == CLOSELY else Predictor(runners[0])


def milliseconds(model: str, threads: int, options: dict[str, str], seconds: float) -> float:
    """Median time of one inference at the size nearest 16:9, over about `seconds`, after a warm-up."""
    with opened(model, threads=threads, **options) as run:
        width, height = engines.nearest_size(run.engine.spec.sizes, 16, 9)
        frame = np.random.default_rng(0).random((1, 4, height, width), np.float32)
        picture = np.ascontiguousarray((255 * frame[0, :3]).astype(np.uint8).transpose(1, 2, 0))
        times: list[float] = []
        end = time.perf_counter() + 1.3 * seconds
        while (now := time.perf_counter()) < end:
            if model == CLOSELY:
                run.still(picture)
            else:
                run.engine.infer({"frame": frame})
            times.append(time.perf_counter() - now)
        return 1000 * statistics.median(times[len(times) // 4 :])


def measure(model: str, data: Path, limit: int | None, options: dict[str, str], seconds: float) -> dict[str, Any]:
    """Every figure of one model."""
    found: dict[str, Any] = {"video_iou": None, "video_dtssd": None}
    scores = (score_people, score_alpha, score_empty) if model == CLOSELY else SCORES
    with opened(model, **options) as run:
        for score in scores:
            found |= {key: None if math.isnan(v) else round(v, 5) for key, v in score(run, data, limit).items()}
        spec = run.engine.spec
        size = engines.nearest_size(spec.sizes, 16, 9)
        found |= {"device": run.engine.device, "kind": spec.kind, "size": f"{size[0]}x{size[1]}"}
        found |= {"parameters": None, "gflops": None}
        try:
            cost = count(spec.path, size)
        except ValueError as exc:
            print(exc, file=sys.stderr)
        else:
            found |= {"parameters": cost.parameters, "gflops": round(2e-9 * cost.macs, 4)}
            if model == CLOSELY:
                found["gflops"] = None  # of several sizes
    for threads in (1, 2):
        found[f"ms_{threads}"] = round(milliseconds(model, threads, options, seconds), 3)
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line a model; `-` for what was not measured."""
    rows = [["", "size", *(title for title, _, _ in COLUMNS), "runs on"]]
    for name, found in results.items():
        cells = ["-" if found.get(key) is None else format(found[key], form) for _, key, form in COLUMNS]
        rows.append([name, found["size"], *cells, found["device"]])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if k in (0, len(row) - 1) else c.rjust(w)
            for k, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", help="names or ONNX files (default: shipped, PATH/models)")
    parser.add_argument("--limit", type=int, help="pictures of each set")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seconds", type=float, default=2, help="of timing, for each model and number of threads")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit {args.limit}: one at least")
    peers = sorted(str(p) for p in (args.data / "models").glob("*.onnx"))
    models = args.model or [*engines.available_models(), CLOSELY, *peers]
    options = {"engine": args.engine, "precision": args.precision}
    results = {}
    try:
        check(args.data)
        for model in models:
            name = Path(model).stem if model.endswith(".onnx") else model
            results[name] = measure(model, args.data, args.limit, options, args.seconds)
    except (engines.EngineError, OSError, ValueError) as exc:
        raise SystemExit(f"benchmarks.quality: {' '.join(str(exc).split())}") from exc
    print(table(results))
    settings = {"limit": args.limit, **options}
    print(json.dumps({"benchmark": "quality", "machine": describe(), "settings": settings, "models": results}))


if __name__ == "__main__":
    main()
