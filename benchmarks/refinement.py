"""What each step after the network costs, on one thread, in a tight loop.

    python -m benchmarks.refinement [--sizes 1280x720 1920x1080] [--pictures 60] [--rounds 3] [--model balanced]

Pictures of the animated demo portrait with mild sensor noise, and the network's raw mattes of them, are made first;
then every step is timed on its own, picture by picture, as live mode calls it: smoothing in time, islands and haze,
guided enlargement, the person's colours with the blend over a picture, and beside them the blend alone (without the
person's colours). `looking ahead` is smoothing as files have it. In a call, where the network empties the processor's
caches between two pictures, the same steps take longer: `benchmarks.live` measures those.

Medians of all pictures of all rounds, in milliseconds a picture; `sum` is that of the steps a call takes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import describe
from engines import load
from rtbg.backgrounds import open_background, parse_background
from rtbg.composite import Compositor
from rtbg.foreground import Foreground
from rtbg.frame import Array, Frame
from rtbg.islands import Islands, without_haze
from rtbg.matting import Look
from rtbg.options import Options, size_of
from rtbg.smoothing import TwoSided
from rtbg.sources.demo import DemoSource
from rtbg.upsampling import Upsampler

STEPS = ("smoothing", "islands", "enlargement", "foreground and blend")
BESIDE = ("blend alone", "looking ahead")
NOISE = 2.0  # codes: sigma


def pictures(size: tuple[int, int], count: int) -> tuple[DemoSource, list[Frame]]:
    """The demo's first pictures with noise on the luma."""
    rng = np.random.default_rng(0)
    source = DemoSource(size=size, seconds=count / 30, rate=30)
    frames = []
    while (frame := source.read()) is not None:
        y, *chroma = frame.planes
        noisy = np.clip(y + rng.normal(0, NOISE, y.shape), 0, 255).astype(np.uint8)
        frames.append(frame.with_planes((noisy, *chroma)))
    return source, frames


def raw_mattes(source: DemoSource, frames: list[Frame], model: str) -> list[tuple[Array, Array]]:
    """(the network's matte, the small grey picture) of each frame."""
    found = []
    engine = load(model, threads=1)
    try:
        look = Look(engine, source.info)
        for frame in frames:
            small = look.reduce(frame)
            look.see(small)
            matte = look.matte()
            look.past[:] = matte
            found.append((matte, np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))))
    finally:
        engine.close()
    return found


def measure(size: tuple[int, int], count: int, rounds: int, model: str) -> dict[str, float]:
    """Milliseconds a picture of each step."""
    options = Options()
    source, frames = pictures(size, count)
    mattes = raw_mattes(source, frames, model)
    background = open_background(parse_background("studio"), source.info, fit="cover")
    spent: dict[str, list[float]] = {name: [] for name in (*STEPS, *BESIDE)}

    def timed(name: str, work: Callable[..., Any], *given: Any) -> Any:
        began = time.perf_counter()
        result = work(*given)
        spent[name].append(time.perf_counter() - began)
        return result

    for _ in range(rounds):
        smoothing: TwoSided[None] = TwoSided(options.smoothing, 0)
        ahead: TwoSided[None] = TwoSided(options.smoothing, options.lookahead)
        islands, enlarge = Islands(), Upsampler()
        full, plain = Compositor(foreground=Foreground()), Compositor()

        def cleaned(matte: Array, at: float, islands: Islands = islands) -> Array:
            return without_haze(islands.push(matte, at))

        for frame, (matte, grey) in zip(frames, mattes, strict=True):
            at = frame.seconds
            ((_, smooth),) = timed("smoothing", smoothing.push, None, matte, grey, at)
            timed("looking ahead", ahead.push, None, matte, grey, at)
            small = timed("islands", cleaned, smooth, at)
            alpha = timed("enlargement", enlarge, small, frame.planes, at)
            planes = background.at(frame, alpha)
            timed("foreground and blend", full, frame, alpha, planes)
            timed("blend alone", plain, frame, alpha, planes)
    background.close()
    source.close()
    row = {name: 1000 * float(np.median(times)) for name, times in spent.items()}
    return {**{n: row[n] for n in STEPS}, "sum": sum(row[n] for n in STEPS), **{n: row[n] for n in BESIDE}}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=size_of, default=[(1280, 720), (1920, 1080)])
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=Options().model)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    rows = {f"{w}x{h}": measure((w, h), args.pictures, args.rounds, args.model) for w, h in args.sizes}
    print(f"{'ms a picture':<22}" + "".join(f"{size:>12}" for size in rows))
    for name in next(iter(rows.values())):
        print(f"{name:<22}" + "".join(f"{row[name]:12.2f}" for row in rows.values()))
    rounded = {size: {k: round(v, 3) for k, v in row.items()} for size, row in rows.items()}
    print(json.dumps({"benchmark": "refinement", "machine": describe(), "model": args.model, "ms": rounded}))


if __name__ == "__main__":
    main()
