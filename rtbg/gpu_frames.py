"""A frame's whole way on the GPU: planes up once, finished planes down once, nothing of the host waited for between.

    planes ─▶ reduce ─▶ network ─▶ smooth ─▶ islands ─▶ guided enlargement ─▶ own colours ─▶ blend ─▶ planes
                └──────────── remembered between pictures, on the GPU ───────────┘

The steps are those of `rtbg.matting`, `rtbg.foreground` and `rtbg.composite`, in the same order and with the same
constants; those modules are the reference, this differs by rounding. Decisions that depend on pixels (a cut, an empty
band) are factors on the GPU, so each frame is the same sequence of work: on CUDA one captured graph. Two frames are in
flight: a frame comes out when the second one after it is pushed.
Not here, so left to the CPU path (`refusal`): 10 bits, 4:2:2, 4:4:4, odd sizes, transparent and matte outputs, other
edges than plain, light wrap. Used by `rtbg.pipeline` for files, where `open_frames` finds the engine on CUDA and torch
there, and by `benchmarks.gpu`.
Memory bound: on the GPU two frames and two more per frame of look-ahead, and about twenty full-size float planes; about
ten frames of page-locked memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from engines import Engine, EngineError, nearest_size
from engines.errors import short_reason
from engines.on_device import Lent
from rtbg.backgrounds import BackgroundSpec
from rtbg.errors import MattingError
from rtbg.frame import Array, Frame, StreamInfo
from rtbg.gpu_ops import Tensor
from rtbg.gpu_steps import FrameSteps
from rtbg.matting import GAP, Refinement

logger = logging.getLogger("rtbg")

IN_FLIGHT = 2


def refusal(
    info: StreamInfo, refinement: Refinement, *, show: str = "composite", wrap: float = 0.0, transparent: bool = False
) -> str:
    """Why such frames take the CPU path, for people; empty: they can go by way of the GPU."""
    if info.bits != 8 or info.chroma != (2, 2) or info.width % 2 or info.height % 2:
        return "the GPU path takes 8-bit 4:2:0 of even sizes"
    if min(info.width, info.height) < 180:  # about the network's own size: nothing would be gained
        return "the GPU path takes pictures from 180 lines on"
    if show != "composite" or transparent:
        return "the GPU path makes composites only"
    if wrap or not refinement.edge.plain:
        return "the GPU path has no --edge and no --light-wrap"
    return ""


def open_frames(
    engine: Engine, info: StreamInfo, refinement: Refinement, background: BackgroundSpec, *, show: str, wrap: float
) -> GpuFrames | None:
    """The way of a stream's frames by the GPU that the engine runs on; None, and why as information, where they go by
    the CPU. Decided once for the stream: an engine that is swapped for one on a GPU later does not change it."""
    transparent = background.kind == "transparent"
    try:
        lent = Lent(engine, nearest_size(engine.spec.sizes, *info.shown_size))
        if reason := refusal(info, refinement, show=show, wrap=wrap, transparent=transparent):
            raise EngineError(reason)
        device = lent.device
    except EngineError as exc:
        logger.info("frames are composited on the CPU: %s", exc)
        return None
    blur = background.strength if background.kind == "blur" else None
    try:
        return GpuFrames(lent, engine.spec.sizes, info, refinement, device=device, blur=blur, renewed=lent.renewed)
    except RuntimeError as exc:
        raise _failed(exc) from exc


class GpuFrames:
    """Mattes and composites the pictures of one stream, in order. One thread at a time.

    network: float32 (1, 4, h, w) on `device` to float32 (1, 1, h, w), queued on the current stream; sizes: its own.
    blur: strength of the frame's own blur as the background, 0 to 1; None: the planes that `push` is given.
    foreground: whether the person's own colours are estimated. capture: replay a CUDA graph, on CUDA. renewed: asked
    before each picture but the first, on the current stream, with what the network was last given: whether it is
    another network now (see `engines.on_device.Lent`; it may wait for the GPU).
    Raises ValueError for a stream that `refusal` names."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        sizes: Sequence[tuple[int, int]],
        info: StreamInfo,
        refinement: Refinement | None = None,
        *,
        device: Any = "cpu",
        blur: float | None = None,
        foreground: bool = True,
        capture: bool = True,
        renewed: Callable[[Tensor], bool] | None = None,
    ) -> None:
        refinement = refinement or Refinement()
        if reason := refusal(info, refinement):
            raise ValueError(reason)
        import torch

        self._torch: Any = torch
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._capture = capture and self._cuda
        size = nearest_size(sizes, *info.shown_size)
        self._steps = FrameSteps(network, size, info, refinement, device=self._device, blur=blur, foreground=foreground)
        self.needs_background = blur is None
        self._renewed = renewed
        if self._cuda:
            torch.cuda.synchronize(self._device)  # what was made so far was made on another stream
        self._stream: Any = self._torch.cuda.Stream(self._device) if self._cuda else None
        self._graph: Any = None
        self._warm = 0  # rounds of work since the network is this one
        self._pushes = 0
        self._seconds: float | None = None
        self._waiting: deque[Frame] = deque()  # on their way in, held for their future
        self._flying: deque[tuple[Frame, Tensor, Any, tuple[Tensor, ...]]] = deque()

    # ---- from and to the host

    def push(self, frame: Frame, background: tuple[Array, ...] | None = None) -> list[Frame]:
        """Takes the next frame with its background (planes like its own; None with `blur`); returns those that are
        finished, oldest first, as new planes. Raises MattingError when the network answered nonsense or the GPU
        fails."""
        if [p.shape for p in frame.planes[:3]] != self._steps.shapes or frame.planes[0].dtype != np.uint8:
            raise ValueError(f"the stream changed to {frame!r}: start anew for it")
        if (background is None) == self.needs_background:
            raise ValueError("a frame comes with its background, or with blur without")
        if background is not None and [p.shape for p in background[:3]] != self._steps.shapes:
            raise ValueError(f"the background {[p.shape for p in background]} does not have the planes of {frame!r}")
        elapsed = -1.0 if self._seconds is None else frame.seconds - self._seconds
        self._seconds = frame.seconds
        self._waiting.append(frame)
        try:
            self._submit(frame.planes, background, elapsed if 0 <= elapsed <= GAP else -1.0)
            return self._landed(IN_FLIGHT)
        except RuntimeError as exc:
            raise _failed(exc) from exc

    def flush(self) -> list[Frame]:
        """End of stream: all that is still on its way, as `push` returns it. The past is forgotten."""
        try:
            while self._waiting:
                self._submit(None, None, -1.0)
            self._seconds = None
            self._pushes = 0
            return self._landed(0)
        except RuntimeError as exc:
            raise _failed(exc) from exc

    def close(self) -> None:
        """Waits for what is under way: from then on nothing uses the network. Never raises. May be called twice."""
        with suppress(RuntimeError):  # a GPU that has failed: `push` or `flush` said so
            if self._stream is not None:
                self._stream.synchronize()
        self._flying.clear()
        self._waiting.clear()
        self._graph = None

    def _submit(self, planes: tuple[Array, ...] | None, background: tuple[Array, ...] | None, elapsed: float) -> None:
        """Queues one round of work. elapsed: seconds since the picture before; negative: it has no past."""
        torch = self._torch
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if self._renewed is not None and self._pushes and planes is not None and self._renewed(self._steps.fed):
                self._graph, self._warm = None, 0
            kept: list[Tensor] = []
            for target, given in ((self._steps.given, planes), (self._steps.behind, background)):
                if given is not None:
                    kept.append(self._pinned(self._steps.bytes))
                    _pack(given, kept[-1].numpy())
                    target.copy_(kept[-1], non_blocking=True)
            kept.append(self._pinned(2, torch.float32))
            kept[-1].numpy()[:] = (max(elapsed, 0.0), float(elapsed < 0))
            self._steps.control.copy_(kept[-1], non_blocking=True)
            self._work()
            self._pushes += 1
            if self._pushes > self._steps.lookahead:
                down = self._pinned(self._steps.bytes + 1)
                down.copy_(self._steps.made, non_blocking=True)
                event = torch.cuda.Event() if self._cuda else None
                if event is not None:
                    event.record(self._stream)
                self._flying.append((self._waiting.popleft(), down, event, tuple(kept)))

    def _landed(self, flying: int) -> list[Frame]:
        done = []
        while len(self._flying) > flying:
            frame, down, event, _ = self._flying.popleft()
            if event is not None:
                event.synchronize()
            data = down.numpy()
            if data[-1]:
                raise MattingError("the network answered values outside 0..1 on the GPU: the matte cannot be trusted")
            done.append(frame.with_planes(self._unpacked(data)))
        return done

    def _pinned(self, size: int, dtype: Any = None) -> Tensor:
        """Memory that is copied from and to without waiting; torch keeps it for the next time."""
        return self._torch.empty(size, dtype=dtype or self._torch.uint8, pin_memory=self._cuda)

    def _unpacked(self, data: Array) -> tuple[Array, ...]:
        luma, chroma = self._steps.shapes[0], self._steps.shapes[1]
        a, b = luma[0] * luma[1], chroma[0] * chroma[1]
        return data[:a].reshape(luma), data[a : a + b].reshape(chroma), data[a + b : a + 2 * b].reshape(chroma)

    def _work(self) -> None:
        """`FrameSteps.step`, as a CUDA graph from the third round with a network on."""
        torch = self._torch
        if self._graph is not None:
            self._graph.replay()
            return
        self._warm += 1
        if self._capture and self._warm == 3:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                    self._steps.step()
            except RuntimeError as exc:  # an operator that cannot be captured: as before, then
                logger.info("the work of a frame cannot be captured as a CUDA graph (%s)", " ".join(str(exc).split()))
                self._capture = False
            else:
                self._graph = graph
                graph.replay()
                return
        self._steps.step()


def _failed(exc: RuntimeError) -> MattingError:
    """Of torch, CUDA or an engine."""
    if isinstance(exc, MattingError):
        return exc
    if isinstance(exc, EngineError):
        return MattingError(str(exc))
    return MattingError(f"the GPU failed ({short_reason(exc)}): --engine openvino goes without it")


def _pack(planes: tuple[Array, ...], out: Array) -> None:
    at = 0
    for plane in planes[:3]:
        np.copyto(out[at : at + plane.size].reshape(plane.shape), plane)
        at += plane.size
