"""What the live mode costs and how late its pictures are: a clip as a camera, through to a virtual camera that is none.

    python -m benchmarks.live [--seconds 120] [--sizes 1280x720 1920x1080] [--model NAME|FILE.onnx] [--clip FILE]
                              [--data PATH] [--mediapipe PYTHON]

The clip is what a webcam sends: Motion JPEG (4:2:2, full range), 30 pictures a second. By default it is made here,
eight seconds of the demo portrait with mild sensor noise, over and over (all of it moves, so hardly any picture counts
as still: the harder case); --clip takes the pictures of a file. Each run is a process of its own: `PacedSource` ->
`run_live` -> a sink that packs I420 as `VirtualCamera` does and throws it away; a picture as the background, everything
else as `rtbg --webcam` does it, without its status line. Beside it, for each size, where they are named:

    --data PATH         the same with MediaPipe's landscape network, PATH/models/*landscape*.onnx, in our engine
    --mediapipe PYTHON  MediaPipe's own solution with a plain compositor, see `benchmarks/mediapipe_solution.py`:
                        an interpreter that has mediapipe 0.10.21, numpy 1.26 and opencv; --compositor where blend:
                        with both of its compositors

After the warm-up, over --seconds:

    cpu        CPU time of all threads of the process, in percent of one core: `total`, with the decoding of the clip,
               which a webcam's Motion JPEG costs too; `camera`, the same clip decoded and paced in a process of its
               own, with nothing behind it; `rest`, the total less that. `ms`: the total for each picture that was
               sent; where many are dropped (a machine with other work), percent say little
    latency    from the moment at which a picture is due from the camera (already decoded) to when it has been sent
    drops      pictures that came from the camera, were due and never left
    reused     pictures for which the composite before was sent again, since nothing had changed
    memory     resident, at the first and the last moment (Linux; all samples are in the JSON)

The last line is one JSON object; there also the milliseconds a picture of each stage (wall-clock) and, on Linux, the
CPU time of each of rtbg's own threads ("other": the decoder's and the engine's). Memory bound: one picture; the clips
are on disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.mediapipe_solution import RATE
from rtbg.errors import RtbgError
from rtbg.frame import Array
from rtbg.options import ENGINES, Options, size_of

SECONDS = 8  # of the demo, a whole period of its movement
MOST = 30  # seconds of --clip that are taken
NOISE = 2.5  # codes, the deviation of the sensor's noise in luma
QUALITY = 3  # of the JPEGs, FFmpeg's scale, 1 best: about as many bytes as webcams spend


# -- the clip --


def pictures(clip: Path | None, size: tuple[int, int]) -> Iterator[tuple[Array, ...]]:
    """I420 planes: the noisy demo's, or a file's, as it is stored."""
    from rtbg.sources import open_source
    from rtbg.sources.demo import DemoSource
    from rtbg.sources.i420 import I420

    to_i420 = I420(size)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, NOISE, 4 * size[0] * size[1]).round().astype(np.int16) if clip is None else None
    source = open_source(clip) if clip is not None else DemoSource(size=size, seconds=SECONDS, rate=RATE)
    try:
        for frame in itertools.islice(iter(source.read, None), MOST * RATE):
            y, u, v = to_i420.planes(frame.planes[:3], frame.color)
            if noise is not None:
                start = int(rng.integers(noise.size - y.size))
                y = np.clip(y + noise[start : start + y.size].reshape(y.shape), 0, 255).astype(np.uint8)
            yield y, u, v
    finally:
        source.close()


def make_clip(path: Path, size: tuple[int, int], clip: Path | None) -> float:
    """Writes the clip as Motion JPEG; returns the kilobytes of a picture."""
    import av

    count = total = 0
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj422p"
        stream.codec_context.qmin = stream.codec_context.qmax = QUALITY
        for y, u, v in pictures(clip, size):
            flat = np.concatenate([plane.ravel() for plane in (y, u, v)])
            picture = av.VideoFrame.from_ndarray(flat.reshape(-1, size[0]), format="yuv420p")
            picture = picture.reformat(format="yuvj422p", src_color_range=1, dst_color_range=2)
            picture.pts, picture.time_base = count, Fraction(1, RATE)
            for packet in stream.encode(picture):
                total += packet.size
                out.mux(packet)
            count += 1
        for packet in stream.encode(None):
            total += packet.size
            out.mux(packet)
    return total / max(1, count) / 1000


def make_background(path: Path) -> None:
    """A picture of gentle slopes."""
    import cv2

    y, x = np.mgrid[0:1080, 0:1920]
    cv2.imwrite(str(path), np.dstack((x // 8, y // 5, 255 - x // 8)).astype(np.uint8))


# -- all runs --


def call(command: Sequence[object]) -> dict[str, Any]:
    """The JSON object in the last line of what a command prints. Raises SystemExit with the last line of its stderr."""
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=os.environ)
    except OSError as exc:
        raise SystemExit(f"{command[0]} cannot be run: {exc.strerror}") from exc
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {last[0]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rtbg_run(kind: str, job: dict[str, Any]) -> dict[str, Any]:
    """What `benchmarks.live_run` measures, in a process of its own."""
    return call([sys.executable, "-m", "benchmarks.live_run", kind, json.dumps(job)])


def solution_run(python: str, job: dict[str, Any], *more: str) -> dict[str, Any]:
    """MediaPipe's solution, in the interpreter that has it."""
    script = Path(__file__).with_name("mediapipe_solution.py")
    timing = ("--seconds", job["seconds"], "--warm-up", job["warm_up"])
    return call([python, script, job["clip"], "--background", job["background"], *timing, *more])


def measure(args: argparse.Namespace, size: tuple[int, int], folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of one picture size."""
    clip, background = folder / f"{size[1]}.mkv", folder / "background.png"
    try:
        kilobytes = make_clip(clip, size, args.clip)
    except RtbgError as exc:
        raise SystemExit(f"no clip: {exc}") from exc
    make_background(background)
    job: dict[str, Any] = {
        "clip": str(clip),
        "background": str(background),
        "seconds": args.seconds,
        "warm_up": args.warm_up,
        "engine": args.engine,
        "threads": args.threads,
    }
    short = job | {"seconds": min(30.0, args.seconds)}
    models = [(f"rtbg, {Path(args.model).stem}", args.model)]
    if args.data is not None:
        found = sorted((args.data / "models").glob("*landscape*.onnx"))
        if not found:
            raise SystemExit(f"no *landscape*.onnx in {args.data / 'models'}")
        models.append(("rtbg, MediaPipe's network", str(found[0])))
    camera = rtbg_run("camera", short)["cpu_percent"]
    for name, model in models:
        yield _row(name, size, kilobytes, camera, rtbg_run("live", job | {"model": model}))
    if args.mediapipe is not None:
        camera = solution_run(args.mediapipe, short, "--alone")["cpu_percent"]
        for way in args.compositor:
            result = solution_run(args.mediapipe, job, "--compositor", way)
            yield _row(f"MediaPipe's solution, {way}", size, kilobytes, camera, result)


def _row(name: str, size: tuple[int, int], kilobytes: float, camera: float, result: dict[str, Any]) -> dict[str, Any]:
    whole = {
        "name": name,
        "size": f"{size[0]}x{size[1]}",
        "jpeg_kb": kilobytes,
        **result,
        "camera_cpu_percent": camera,
        "rest_cpu_percent": result["cpu_percent"] - camera,
    }
    return {key: _rounded(value) for key, value in whole.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value


HEAD = (
    f"{'':27} {'':>9}   {'cpu % of one core':^29}   {'latency ms':^20}   {'':>5} {'':>5} {'':>6} {'':>6}   "
    f"{'memory MB':^13}\n"
    f"{'':27} {'size':>9}   {'total':>7} {'camera':>7} {'rest':>7} {'ms':>5}   {'p50':>6} {'p95':>6} {'p99':>6}   "
    f"{'fps':>5} {'drops':>5} {'%':>6} {'reused':>6}   {'start':>6} {'end':>6}"
)


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    late = row["latency_ms"]
    start, end = ("-" if row["memory_mb"][k] is None else f"{row['memory_mb'][k]:.1f}" for k in (0, -1))
    return (
        f"{row['name']:27} {row['size']:>9}   {row['cpu_percent']:7.1f} {row['camera_cpu_percent']:7.1f} "
        f"{row['rest_cpu_percent']:7.1f} {row['cpu_ms']:5.1f}   {late['p50']:6.1f} {late['p95']:6.1f} "
        f"{late['p99']:6.1f}   {row['fps']:5.2f} {row['dropped']:5} {row['dropped_percent']:6.3f} "
        f"{row.get('reused', '-'):>6}   {start:>6} {end:>6}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    d = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--warm-up", type=float, default=5.0)
    parser.add_argument("--sizes", nargs="+", type=size_of, default=[(1280, 720), (1920, 1080)])
    parser.add_argument("--model", default=d.model)
    parser.add_argument("--engine", choices=ENGINES, default=d.engine)
    parser.add_argument("--threads", type=int, default=d.threads)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--mediapipe", metavar="PYTHON")
    parser.add_argument("--compositor", nargs="+", choices=("where", "blend"), default=["where"])
    args = parser.parse_args(argv)
    print(HEAD)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            for row in measure(args, size, Path(folder)):
                results.append(row)
                print(line(row), flush=True)
    print(json.dumps({"benchmark": "live", "machine": describe(), "results": results}))


if __name__ == "__main__":
    main()
