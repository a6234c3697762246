"""How fast frames are matted and composited on a GPU, by stage and in all; runs on the CPU too, at its pace.

    python -m benchmarks.gpu [--sizes 512x288 1920x1080 3840x2160] [--device auto] [--frames 200] [--model balanced]

Batch 1. For each size, in milliseconds (median) and pictures a second:
    network            the network alone, tensor to tensor at its own input size, captured and eager
    tensors only       from planes on the device to the full-size matte there: reduction, network, smoothing, islands,
                       guided enlargement: what a mattor does, to be set beside the RVM shape's line; captured and eager
    frame on device    the same, and the person's colours and the blend; captured and eager
    end to end         planes in the host's memory to finished planes there, two in flight, no codec
    TensorRT           the network alone by way of `engines.load(engine="tensorrt")`, copies included, where it runs
    RVM shape          `benchmarks.rvm_shape`, random weights, in the same precision: reduced as its authors advise, the
                       matte at full size. Published (their README, RTX 3090, FP16): HD 172, 4K 154 pictures a second
The stages are measured one by one, eager, so their sum is above the captured total. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from benchmarks.rvm_shape import RvmShape
from engines import EngineError, load
from engines.torch_engine import TorchRunner, find_device
from rtbg.frame import Frame
from rtbg.gpu_frames import GpuFrames
from rtbg.gpu_steps import FrameSteps
from rtbg.matting import Refinement
from rtbg.sources.demo import DemoSource

STAGES = {
    "_reduced": "reduce",
    "_infer": "network",
    "_smooth": "smooth",
    "_without_islands": "islands",
    "_enlarge": "enlarge",
    "_own_colours": "colours",
    "_blend": "blend",
}


class Clock:
    """Times work on one device."""

    def __init__(self, device: Any, frames: int) -> None:
        self.device, self.frames, self.cuda = device, frames, device.type == "cuda"

    def wait(self) -> None:
        """Until the device has nothing to do."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def ms(self, work: Callable[[], object], rounds: int = 5) -> float:
        """Milliseconds of one call: the median over rounds of many calls in a row, after a warm-up."""
        count = max(1, self.frames // rounds)
        for _ in range(min(5, count)):
            work()
        times = []
        for _ in range(rounds):
            self.wait()
            began = time.perf_counter()
            for _ in range(count):
                work()
            self.wait()
            times.append((time.perf_counter() - began) / count)
        return 1000 * statistics.median(times)


def captured(work: Callable[[], object], device: Any) -> tuple[Callable[[], object], bool]:
    """The work as a replay of a CUDA graph, and whether it is one (not on other devices, nor where it fails)."""
    if device.type != "cuda":
        return work, False
    cuda: Any = torch.cuda
    stream = cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            work()
    except RuntimeError as exc:
        print(f"  not captured: {' '.join(str(exc).split())[:120]}")
        return work, False
    return graph.replay, True


def stages(steps: FrameSteps, clock: Clock) -> dict[str, float]:
    """Milliseconds of each stage, eager, the device waited for around it."""
    spent: dict[str, list[float]] = {name: [] for name in STAGES.values()}
    for method, name in STAGES.items():
        inner = getattr(steps, method)

        def timed(*args: Any, inner: Any = inner, name: str = name) -> Any:
            clock.wait()
            began = time.perf_counter()
            out = inner(*args)
            clock.wait()
            spent[name].append(1000 * (time.perf_counter() - began))
            return out

        setattr(steps, method, timed)
    for _ in range(max(3, clock.frames // 5)):
        steps.step()
    for method in STAGES:
        delattr(steps, method)
    return {name: statistics.median(times) for name, times in spent.items() if times}


def measure(size: tuple[int, int], runner: TorchRunner, sizes: Any, clock: Clock) -> dict[str, Any]:
    """Milliseconds of everything at one picture size, in the order of the module's text."""
    source = DemoSource(size=size, seconds=0.5, rate=30)
    frames: list[Frame] = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    background = tuple(np.ascontiguousarray(p[::-1]) for p in frames[0].planes[:3])
    device = runner.where
    path = GpuFrames(runner.tensors, sizes, source.info, Refinement(), device=device)
    path.push(frames[0], background)
    path.flush()
    steps = path._steps
    result: dict[str, Any] = {"size": f"{size[0]}x{size[1]}"}
    with torch.inference_mode():
        x = torch.rand(1, 4, *steps._past.shape[1:], device=device)
        eager = lambda: runner.tensors(x)  # noqa: E731
        for name, part in (("network", eager), ("tensors_only", steps.matte), ("frame_on_device", steps.step)):
            result[f"{name}_ms"], result[f"{name}_eager_ms"], graph = both(part, clock)
            result["graph"] = result.get("graph", True) and graph
        result["stages_ms"] = {k: round(v, 3) for k, v in stages(steps, clock).items()}
        result["stages_fps"] = {k: round(1000 / max(v, 1e-3), 1) for k, v in result["stages_ms"].items()}
    turn = 0

    def push() -> None:
        nonlocal turn
        frame = frames[turn % len(frames)]
        turn += 1
        path.push(Frame(frame.planes, turn, frame.time_base, frame.color), background)

    result["end_to_end_ms"] = clock.ms(push)
    path.flush()
    result["rvm_shape_ms"], result["rvm_shape_eager_ms"], _ = rvm(size, runner, clock)
    for key, value in list(result.items()):
        if key.endswith("_ms") and isinstance(value, float):
            result[key] = round(value, 3)
            result[key.removesuffix("_ms") + "_fps"] = round(1000 / value, 1)
    return result


def both(work: Callable[[], object], clock: Clock) -> tuple[float, float, bool]:
    """Milliseconds captured and eager, which are the same where nothing is captured, and whether it was."""
    replay, graph = captured(work, clock.device)
    taken = clock.ms(replay)
    return taken, clock.ms(work) if graph else taken, graph


def rvm(size: tuple[int, int], runner: TorchRunner, clock: Clock) -> tuple[float, float, bool]:
    """`both` of the RVM shape, in our network's precision."""
    width, height = size
    ratio = min(1.0, 512 / max(size))  # as its authors advise: about 512 pixels
    torch.manual_seed(0)
    dtype = next(t.dtype for t in runner.network._constants.values() if t.is_floating_point())
    model: Any = RvmShape().eval()
    model = model.to(runner.where, dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        picture = torch.rand(1, 3, height, width, device=runner.where, dtype=dtype)
        picture = picture.contiguous(memory_format=torch.channels_last)
        small = picture.shape[2:] if ratio == 1 else torch.Size((int(height * ratio), int(width * ratio)))
        states = model.states(*small)

        def work() -> None:
            _, new = model(picture, states, ratio)
            for old, state in zip(states, new, strict=True):
                old.copy_(state)

        return both(work, clock)


def tensorrt(model: str, clock: Clock) -> dict[str, Any]:
    """The network by TensorRT at its first size, or why not."""
    try:
        engine = load(model, engine="tensorrt")
        width, height = engine.spec.sizes[0]
        frame = np.zeros((1, 4, height, width), np.float32)
        taken = clock.ms(lambda: engine.infer({"frame": frame}))
    except EngineError as exc:
        return {"missing": str(exc)}
    device = engine.device
    engine.close()
    return {"device": device, "size": f"{width}x{height}", "ms": round(taken, 3), "fps": round(1000 / taken, 1)}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["512x288", "1920x1080", "3840x2160"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--model", default="balanced")
    args = parser.parse_args(argv)
    device = find_device(torch, args.device)
    engine = load(args.model, engine="torch", device=str(device))
    runner: Any = engine._runner  # type: ignore[attr-defined]
    clock = Clock(device, args.frames)
    print(f"{engine.device}, torch {torch.__version__}, model {args.model}")
    results = []
    for text in args.sizes:
        width, height = map(int, text.split("x"))
        result = measure((width, height), runner, engine.spec.sizes, clock)
        results.append(result)
        print(f"{result['size']}{' (CUDA graphs)' if result['graph'] else ''}")
        for key, value in result.items():
            if key.endswith("_ms") and isinstance(value, float):
                print(f"  {key[:-3]:<22}{value:9.3f} ms {result[key[:-3] + '_fps']:9.1f} fps")
        print("  stages, eager:")
        for key, value in result["stages_ms"].items():
            print(f"    {key:<20}{value:9.3f} ms {result['stages_fps'][key]:9.1f} fps")
    compiled = tensorrt(args.model, clock)
    print("  TensorRT: " + ", ".join(f"{k} {v}" for k, v in compiled.items()))
    machine = describe() | {"torch": str(torch.__version__), "device": engine.device}
    print(json.dumps({"benchmark": "gpu", "machine": machine, "results": results, "tensorrt": compiled}))


if __name__ == "__main__":
    main()
