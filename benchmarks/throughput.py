"""How fast a file is done, against the same decoding and encoding with nothing in between.

    python -m benchmarks.throughput [--frames 300] [--sizes 1280x720 1920x1080] [--rounds 3]

The clip is made here: the demo portrait, moving, with sensor noise, H.264. (a) decodes and encodes it with
PyAV alone (libx264 veryfast crf 23, the same thread counts); (b) is rtbg in full with a picture as the
background and the same encoder settings, in a process of its own. (c) decodes the clip and encodes what rtbg
made of it: a picture behind the person is easier to encode than the noise of the camera, so (b)/(a) flatters
rtbg, and (b)/(c) does not. All are timed in turn, steady state (from the frame at a fifth of the clip to the
last byte) and start-up (to the first frame written) apart; the ratios are those of the medians.
Peak memory is that of the process of (b), for the clip and for one three times as long (not on Windows).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.machine import describe
from rtbg.frame import Frame
from rtbg.threads import codec_threads

CODEC = {"preset": "veryfast", "crf": "23"}


def make_clip(path: Path, size: tuple[int, int], frames: int) -> None:
    """The animated portrait with noise of a small sensor, 30 fps."""
    from rtbg.sources.demo import DemoSource

    rng = np.random.default_rng(0)
    noise = rng.normal(0, 4, 4 * size[0] * size[1]).astype(np.int16)
    source = DemoSource(size=size, seconds=frames / 30, rate=30)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        k = 0
        while (frame := source.read()) is not None:
            start = int(rng.integers(3 * size[0] * size[1]))
            y = frame.planes[0]
            noisy = np.clip(y + noise[start : start + y.size].reshape(y.shape), 0, 255).astype(np.uint8)
            flat = np.concatenate([noisy.ravel(), *(p.ravel() for p in frame.planes[1:3])])
            picture = av.VideoFrame.from_ndarray(flat.reshape(-1, size[0]), format="yuv420p")
            picture.pts, picture.time_base, k = k, Fraction(1, 30), k + 1
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))


def steady(times: list[float], end: float) -> float:
    """Frames a second from the frame at a fifth of the clip to the end."""
    k = len(times) // 5
    return (len(times) - k) / (end - times[k])


def load(video: Path, count: int) -> list[av.VideoFrame]:
    """The first pictures of a video, decoded."""
    with av.open(str(video)) as source:
        return list(itertools.islice(source.decode(video=0), count))


def plain(clip: Path, target: Path, pictures: Sequence[av.VideoFrame] = ()) -> tuple[float, float]:
    """(a): (steady fps, seconds to the first frame). With pictures, (c): those are encoded, forwards and backwards
    by turns, instead of what is decoded."""
    order = [*pictures, *reversed(pictures)]
    began, times = time.perf_counter(), []
    with av.open(str(clip)) as source, av.open(str(target), "w") as out:
        video = source.streams.video[0]
        video.thread_type, video.codec_context.thread_count = "AUTO", codec_threads()
        stream = out.add_stream("libx264", rate=30, options=CODEC)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        if video.time_base is not None:
            stream.codec_context.time_base = video.time_base
        stream.thread_type, stream.codec_context.thread_count = "AUTO", codec_threads()
        for k, frame in enumerate(source.decode(video)):
            if order:
                pts, base = frame.pts, frame.time_base
                frame = order[k % len(order)]
                frame.pts, frame.time_base = pts, base
            frame.pict_type = 0
            out.mux(stream.encode(frame))
            times.append(time.perf_counter())
        out.mux(stream.encode(None))
    return steady(times, time.perf_counter()), times[0] - began


def peak_mb() -> float | None:
    """Megabytes of memory that this process has held at most; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux kilobytes


def full(clip: Path, target: Path, background: Path, model: str) -> dict[str, Any]:
    """(b), in this process: figures of one rtbg run."""
    began = time.perf_counter()
    import cv2

    from rtbg import Options
    from rtbg.api import replace_background
    from rtbg.sinks.video import VideoSink

    sys.setswitchinterval(0.0005)  # as the command line does
    cv2.setNumThreads(1)
    times: list[float] = []
    write = VideoSink.write

    def timed(self: VideoSink, frame: Frame) -> None:
        write(self, frame)
        times.append(time.perf_counter())

    VideoSink.write = timed  # type: ignore[method-assign]
    options = Options(crf=int(CODEC["crf"]), preset=CODEC["preset"], overwrite=True, model=model)
    stats = replace_background(clip, target, background=background, options=options)
    return {
        "fps": steady(times, time.perf_counter()),
        "startup": times[0] - began,
        "engine": stats.engine,
        "rss_mb": peak_mb(),
        "ms": {k: 1000 * v / stats.frames_out for k, v in stats.stages.items()},
    }


def in_process(clip: Path, target: Path, background: Path, model: str) -> dict[str, Any]:
    """(b), in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.throughput", "--one", clip, target, background, model]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, env=os.environ)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(size: tuple[int, int], frames: int, rounds: int, folder: Path, model: str) -> dict[str, Any]:
    """The figures of one picture size."""
    clip, longer = folder / f"{size[1]}.mp4", folder / f"{size[1]}-long.mp4"
    background = folder / "background.png"
    if not background.exists():
        import cv2

        y, x = np.mgrid[0:1080, 0:1920]
        cv2.imwrite(str(background), np.dstack((x // 8, y // 5, 255 - x // 8)).astype(np.uint8))
    make_clip(clip, size, frames)
    make_clip(longer, size, 3 * frames)
    target = folder / "out.mp4"
    a, b, c = [], [], []
    in_process(clip, target, background, model)  # warm-up: caches
    pictures = load(target, 60)
    for _ in range(rounds):
        a.append(plain(clip, target))
        b.append(in_process(clip, target, background, model))
        c.append(plain(clip, target, pictures))
    long = in_process(longer, target, background, model)
    fps_a, fps_c = (statistics.median(f for f, _ in runs) for runs in (a, c))
    fps_b = statistics.median(r["fps"] for r in b)
    stages = {k: statistics.median(r["ms"][k] for r in b) for k in b[0]["ms"]}
    return {
        "size": f"{size[0]}x{size[1]}",
        "decode_encode_fps": round(fps_a, 1),
        "rtbg_fps": round(fps_b, 1),
        "ratio": round(fps_b / fps_a, 3),
        "ratios": [round(r["fps"] / f, 3) for (f, _), r in zip(a, b, strict=True)],
        "same_pictures_fps": round(fps_c, 1),
        "same_pictures_ratio": round(fps_b / fps_c, 3),
        "same_pictures_ratios": [round(r["fps"] / f, 3) for (f, _), r in zip(c, b, strict=True)],
        "startup_s": round(statistics.median(r["startup"] for r in b), 2),
        "peak_mb": long["rss_mb"] and round(max(r["rss_mb"] for r in b)),
        "peak_mb_3x_length": long["rss_mb"] and round(long["rss_mb"]),
        "engine": b[0]["engine"],
        "stage_ms": {k: round(v, 2) for k, v in stages.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--sizes", nargs="+", default=["1280x720", "1920x1080"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="balanced")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        clip, target, background, model = args.one
        print(json.dumps(full(Path(clip), Path(target), Path(background), model)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for text in args.sizes:
            width, height = map(int, text.split("x"))
            result = measure((width, height), args.frames, args.rounds, Path(folder), args.model)
            results.append(result)
            print(f"{result['size']:>10}  decode+encode {result['decode_encode_fps']:6.1f} fps   "
                  f"of the same pictures {result['same_pictures_fps']:6.1f} fps   rtbg {result['rtbg_fps']:6.1f} fps   "
                  f"ratios {result['ratio']:.2f} {result['ratios']}, {result['same_pictures_ratio']:.2f} "
                  f"{result['same_pictures_ratios']}   "
                  f"start-up {result['startup_s']:.2f} s   peak {result['peak_mb']} MB, "
                  f"three times as long {result['peak_mb_3x_length']} MB")  # fmt: skip
            print("            ms a frame (each stage on its own thread): "
                  + ", ".join(f"{k} {v}" for k, v in result["stage_ms"].items()))  # fmt: skip
    print(json.dumps({"benchmark": "throughput", "machine": describe(), "results": results}))


if __name__ == "__main__":
    main()
