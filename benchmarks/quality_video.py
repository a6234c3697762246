"""How good mattes and composites of videos are, step by step, against a known truth and against MediaPipe.

    python -m benchmarks.quality_video --data PATH [--quick] [--model balanced]

Animated cut-outs with true alpha (see `benchmarks.scenes`: 1280x720, 30 fps, still, smooth, fast, shaken; noise and
H.264) and, inside a margin around the mask, real clips. Every row gets the same decoded pictures; the rtbg rows also
the same raw mattes of the network. Figures are means over the pictures of a scene, then over scenes:

- MAD, MSE, Grad, Conn, dtSSD as RVM defines them; F: boundary F at 0.008 of the diagonal.
- flicker: change of the matte while nothing moves, from the ninth picture on. trail: alpha error where the person
  was, or was not, 3 pictures earlier, in fast moves.
- halo: colour error of the composite in the matte's soft edge, within 12 pixels of the true one, against the
  person's true colours under the same matte: what is left of the old room. rim: the same against the true matte and
  colours, in the true soft edge. Both over new backgrounds of one colour, in codes. The last line has the halo under
  the true matte, plain and with the colours estimated.

A table of its own for the blurred background, outside the person (in the truth and in the matte), against the blurred
room without anybody in it, in codes: bleed: mean colour error within 48 pixels of the person; rim: how much darker or
brighter it is within 12 pixels, in luma; brightness: the same for all of it. The first row is a blur of the same
radius of the whole picture.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from benchmarks import metrics
from benchmarks.machine import describe
from benchmarks.scenes import Picture, animated, real
from engines import Engine, load, nearest_size
from rtbg.backgrounds.blur import BlurBackground
from rtbg.color import planes_to_rgb, rgb_to_planes, small_rgb
from rtbg.composite import composite
from rtbg.foreground import Foreground
from rtbg.frame import Array, StreamInfo
from rtbg.islands import Islands, without_haze
from rtbg.options import Options
from rtbg.smoothing import TwoSided
from rtbg.upsampling import Upsampler

ROWS = ("raw, bilinear", "+ smoothing", "+ guided", "+ foreground", "two-sided", "MediaPipe")
COLUMNS = ("mad", "mse", "grad", "conn", "dtssd", "f", "flicker", "trail", "halo", "rim")
BACKGROUNDS = ((0, 200, 60), (240, 240, 240), (15, 15, 25))
EVERY = 6  # the slow figures are taken of every so many pictures
BLURS = ("of the whole picture", "without the person")
BLUR_COLUMNS = ("bleed", "rim", "brightness")
Done = tuple[Picture, Array, tuple[Array, ...]]  # the matte (uint8) and the planes that are composited with it


class Method(Protocol):
    """One row: from pictures, in order, to mattes."""

    def push(self, picture: Picture, raw: Array, grey: Array) -> list[Done]:
        """raw: the network's matte; grey: the small picture. What is finished by now."""

    def flush(self) -> list[Done]:
        """End of the scene."""


class Chain:
    """rtbg's own steps, as many of them as asked for."""

    def __init__(
        self, *, smoothing: float = 0.0, guided: bool = False, foreground: bool = False, lookahead: int = 0
    ) -> None:
        self._smooth: TwoSided[Picture] = TwoSided(smoothing, lookahead)
        self._islands = Islands() if guided else None
        self._upsample = Upsampler(guided=guided)
        self._foreground = Foreground() if foreground else None

    def push(self, picture: Picture, raw: Array, grey: Array) -> list[Done]:
        """See `Method`."""
        return [self._finish(*pair) for pair in self._smooth.push(picture, raw, grey, picture.frame.seconds)]

    def flush(self) -> list[Done]:
        """See `Method`."""
        return [self._finish(*pair) for pair in self._smooth.flush()]

    def _finish(self, picture: Picture, matte: Array) -> Done:
        if self._islands is not None:
            matte = without_haze(self._islands.push(matte, picture.frame.seconds))
        planes = picture.frame.planes
        alpha = self._upsample(matte, planes, picture.frame.seconds)
        return picture, alpha, self._foreground(planes, alpha) if self._foreground is not None else planes


class MediaPipe:
    """MediaPipe's landscape selfie segmentation with what is usually done to its mask: an exponential average (0.6 of
    the new one), bilinear enlargement, a Gaussian of 7x7 at 720 lines."""

    def __init__(self, session: Any) -> None:
        self._session, self._mean = session, None

    def push(self, picture: Picture, raw: Array, grey: Array) -> list[Done]:
        """See `Method`; looks at the picture only."""
        frame = picture.frame
        rgb = small_rgb(frame.planes, frame.color, 256, 144).astype(np.float32) / np.float32(255)
        (logits,) = self._session.run(None, {self._session.get_inputs()[0].name: rgb[None]})
        # Two channels, background and person, before their softmax.
        mask = (1 / (1 + np.exp(logits[0, ..., 0] - logits[0, ..., 1]))).astype(np.float32)
        past: Array = mask if self._mean is None else self._mean
        mean = cv2.addWeighted(mask, 0.6, past, 0.4, 0)
        self._mean = mean  # type: ignore[assignment]
        big = cv2.resize(cv2.convertScaleAbs(mean, alpha=255), (frame.width, frame.height))
        side = round(7 * frame.height / 720) // 2 * 2 + 1
        return [(picture, np.asarray(cv2.GaussianBlur(big, (side, side), 0)), frame.planes)]

    def flush(self) -> list[Done]:
        """See `Method`."""
        return []


class Network:
    """The raw small mattes of one scene, each made with the one before."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._input: Array | None = None

    def __call__(self, picture: Picture) -> tuple[Array, Array]:
        """(raw matte, small grey picture)."""
        frame = picture.frame
        width, height = nearest_size(self._engine.spec.sizes, frame.width, frame.height)
        if self._input is None:
            self._input = np.zeros((1, 4, height, width), np.float32)
        rgb = small_rgb(frame.planes, frame.color, width, height)
        self._input[0, :3] = rgb.transpose(2, 0, 1) / np.float32(255)
        raw = np.clip(self._engine.infer({"frame": self._input})["alpha"][0, 0], 0, 1).astype(np.float32)
        self._input[0, 3] = raw
        return raw, np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def over(picture: Picture, alpha: Array, planes: tuple[Array, ...], rgb: tuple[int, int, int]) -> tuple[Array, Array]:
    """(the composite of those planes over one colour, what it would be with the person's true colours), RGB."""
    assert picture.person is not None
    frame = picture.frame
    flat = np.full(picture.person.shape, rgb, np.uint8)
    behind = rgb_to_planes(flat, frame.color, height=frame.height, bits=8, chroma=frame.chroma)
    made = planes_to_rgb(composite(frame.with_planes(planes), alpha, behind).planes, frame.color)
    share = alpha[..., None].astype(np.float32) / np.float32(255)
    return made, picture.person.astype(np.float32) * share + flat * (1 - share)


def under_truth(picture: Picture, rgb: tuple[int, int, int]) -> tuple[float, float]:
    """Halo under the true matte: plain, and with the person's colours estimated."""
    alpha = np.rint(picture.alpha * 255).astype(np.uint8)
    edge, planes = metrics.soft_edge(picture.alpha), picture.frame.planes
    found = [metrics.halo(*over(picture, alpha, p, rgb), edge) for p in (planes, Foreground()(planes, alpha))]
    return found[0], found[1]


def behind_blur(picture: Picture, alpha: Array) -> list[tuple[float, ...]]:
    """BLUR_COLUMNS for each of BLURS, with this matte."""
    assert picture.room is not None
    frame = picture.frame
    info = StreamInfo(frame.width, frame.height, frame.time_base, 1 / frame.time_base, frame.color)
    room = rgb_to_planes(picture.room, frame.color, height=frame.height, bits=8, chroma=frame.chroma)
    nobody = np.zeros_like(alpha)

    def seen(planes: tuple[Array, ...], without: Array) -> tuple[Array, Array]:
        blurred = BlurBackground(0.5, info).at(frame.with_planes(planes), without)
        return planes_to_rgb(blurred, frame.color).astype(np.float32), blurred[0].astype(np.float32)

    outside = (picture.alpha <= 0.02) & (alpha <= 5)
    near, rim = (outside & metrics.around(picture.alpha, width) for width in (48, 12))
    true, true_luma = seen(room, nobody)
    rows = []
    for without in (nobody, alpha):
        rgb, luma = seen(frame.planes, without)
        lighter = [abs(float((luma - true_luma)[w].mean())) if w.any() else math.nan for w in (rim, outside)]
        rows.append((metrics.halo(rgb, true, near), *lighter))
    return rows


class Scores:
    """Figures of one row in one scene."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}
        self.blurs: list[list[tuple[float, ...]]] = []
        self._past: list[tuple[Array, Array]] = []  # (prediction, truth) of up to 3 pictures before
        self._count = 0

    def add(self, picture: Picture, alpha: Array, planes: tuple[Array, ...], blur: bool = False) -> None:
        """One picture more. blur: also `behind_blur`."""
        pred, true = alpha.astype(np.float32) / np.float32(255), picture.alpha
        inside = picture.where

        def seen(a: Array) -> Array:
            return a if inside is None else np.where(inside, a, np.float32(0))

        self._put(mad=metrics.mad(seen(pred), seen(true)), mse=metrics.mse(seen(pred), seen(true)))
        if self._past:
            pred_before, true_before = self._past[-1]
            self._put(dtssd=metrics.dtssd(seen(pred), seen(pred_before), seen(true), seen(true_before)))
            if picture.part == "still" and self._count >= 8:
                self._put(flicker=metrics.flicker(pred, pred_before))
            if picture.part == "fast" and len(self._past) == 3:
                self._put(trail=metrics.trail(pred, true, self._past[0][1]))
        if self._count % EVERY == EVERY - 1:
            self._put(
                grad=metrics.grad(seen(pred), seen(true)),
                conn=metrics.conn(seen(pred), seen(true)),
                f=metrics.boundary_f(pred, true, where=inside),
            )
            if picture.person is not None:
                self._colours(picture, alpha, planes)
            if picture.room is not None and blur:
                self.blurs.append(behind_blur(picture, alpha))
        self._past = [*self._past[-2:], (pred, true)]
        self._count += 1

    def _colours(self, picture: Picture, alpha: Array, planes: tuple[Array, ...]) -> None:
        rgb = BACKGROUNDS[self._count // EVERY % len(BACKGROUNDS)]
        made, under = over(picture, alpha, planes, rgb)
        _, ideal = over(picture, np.rint(picture.alpha * 255).astype(np.uint8), planes, rgb)
        edge = metrics.soft_edge(picture.alpha)
        # Further in, a soft matte is a hole, not a halo; further out no true colour is known.
        near = cv2.dilate(edge.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
        used = alpha.astype(np.float32) / np.float32(255)
        self._put(halo=metrics.halo(made, under, metrics.soft_edge(used) & near), rim=metrics.halo(made, ideal, edge))

    def _put(self, **values: float) -> None:
        for name, value in values.items():
            if not math.isnan(value):
                self._found.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """Means over the scene's pictures of whatever could be measured."""
        return {name: float(np.mean(values)) for name, values in self._found.items()}


def methods(session: Any, strength: float) -> dict[str, Method]:
    """A fresh method for each row."""
    made: list[Method] = [
        Chain(),
        Chain(smoothing=strength),
        Chain(smoothing=strength, guided=True),
        Chain(smoothing=strength, guided=True, foreground=True),
        Chain(smoothing=strength, guided=True, foreground=True, lookahead=Options().lookahead),
        MediaPipe(session),
    ]
    return dict(zip(ROWS, made, strict=True))


def run_scene(
    pictures: Iterator[Picture], engine: Engine, session: Any, strength: float
) -> tuple[dict[str, dict[str, float]], list[tuple[float, float]], list[list[tuple[float, ...]]]]:
    """(figures of every row in one scene, `under_truth` and `behind_blur` of some of its pictures)."""
    network, rows = Network(engine), methods(session, strength)
    scores, exact = {name: Scores() for name in rows}, []
    for k, picture in enumerate(pictures):
        if picture.person is not None and k % EVERY == EVERY - 1:
            exact.append(under_truth(picture, BACKGROUNDS[k // EVERY % len(BACKGROUNDS)]))
        raw, grey = network(picture)
        for name, method in rows.items():
            for done in method.push(picture, raw, grey):
                scores[name].add(*done, blur=name == ROWS[3])
    for name, method in rows.items():
        for done in method.flush():
            scores[name].add(*done)
    return {name: s.means() for name, s in scores.items()}, exact, scores[ROWS[3]].blurs


def average(scenes: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over scenes."""
    out: dict[str, dict[str, float]] = {}
    for row in ROWS:
        names = [c for c in COLUMNS if any(c in scene[row] for scene in scenes)]
        out[row] = {c: round(float(np.mean([s[row][c] for s in scenes if c in s[row]])), 4) for c in names}
    return out


def table(title: str, figures: dict[str, dict[str, float]]) -> str:
    """The figures of every row, for people."""
    columns = [c for c in COLUMNS if c in figures[ROWS[0]]]
    lines = [f"{title:<28}" + "".join(f"{c:>9}" for c in columns)]
    lines += [f"{row:<28}" + "".join(f"{figures[row][c]:9.3f}" for c in columns) for row in ROWS]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds alpha/val and video/val")
    parser.add_argument("--quick", action="store_true", help="three scenes and short clips")
    parser.add_argument("--model", default="balanced")
    parser.add_argument("--smoothing", type=float, default=0.5)
    args = parser.parse_args(argv)
    import onnxruntime

    cv2.setNumThreads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = args.data / "models" / "mediapipe_selfie_landscape.onnx"
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    engine = load(args.model, threads=1)
    scenes, count, clip = ((3, 5, 9), 44, 12) if args.quick else (range(10), 72, 90)
    made, exact, blurs = [], [], []
    for k in scenes:
        figures, pairs, blurred = run_scene(animated(args.data, k, count), engine, session, args.smoothing)
        made.append(figures)
        exact += pairs
        blurs += blurred
        print(f"  scene {k}: " + ", ".join(f"{r} MAD {f['mad']:.1f}" for r, f in made[-1].items()), flush=True)
    clips = sorted(p.name for p in (args.data / "video" / "val").iterdir() if p.is_dir())
    filmed = [run_scene(real(args.data, name, clip), engine, session, args.smoothing)[0] for name in clips]
    engine.close()
    animation, film = average(made), average(filmed)
    print(table("animated cut-outs, 720p", animation))
    print(table("real clips, in the margin", film))
    blur = dict(zip(BLURS, np.nanmean(blurs, axis=0).round(3).tolist(), strict=True))
    print(f"{'blurred background':<28}" + "".join(f"{c:>11}" for c in BLUR_COLUMNS))
    for name, values in blur.items():
        print(f"{name:<28}" + "".join(f"{v:11.3f}" for v in values))
    ours, peer = animation["+ foreground"], animation["MediaPipe"]
    ratios = {name: round(ours[name] / peer[name], 3) for name in ("mad", "mse", "dtssd", "flicker", "trail")}
    print("of MediaPipe's: " + ", ".join(f"{k} {v}" for k, v in ratios.items()))
    # Plain compositing: the network's matte enlarged and blended as it is; and our own matte with the camera's colours.
    halos = {row: round(ours["halo"] / animation[row]["halo"], 3) for row in ("raw, bilinear", "+ guided")}
    print("halo, of plain compositing's: " + ", ".join(f"{k} {v}" for k, v in halos.items()))
    truth = dict(zip(("plain", "estimated"), np.mean(exact, axis=0).round(3).tolist(), strict=True))
    print("halo under the true matte: " + ", ".join(f"{k} {v}" for k, v in truth.items()))
    result = {"benchmark": "quality_video", "machine": describe(), "engine": engine.device, "model": args.model,
              "quick": args.quick, "animated": animation, "real": film, "ratios": ratios, "halos": halos,
              "halo_under_truth": truth, "blur": {"columns": BLUR_COLUMNS, **blur}}  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
