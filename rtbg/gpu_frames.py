"""A frame's whole way on the GPU: planes up once, finished planes down once, nothing of the host waited for between.

    planes ─▶ reduce ─▶ network ─▶ smooth ─▶ islands ─▶ guided enlargement ─▶ own colours ─▶ blend ─▶ planes
                └──────────── remembered between pictures, on the GPU ───────────┘

The steps are those of `rtbg.matting`, `rtbg.foreground` and `rtbg.composite`, in the same order and with the same
constants; those modules are the reference, this differs by rounding. Decisions that depend on pixels (a cut, an empty
band) are factors on the GPU, so each frame is the same sequence of work: on CUDA one captured graph. Two frames are in
flight: a frame comes out when the second one after it is pushed.
Not here, so left to the CPU path (`refusal`): 10 bits, 4:2:2, 4:4:4, odd sizes, transparent and matte outputs, other
edges than plain, light wrap. Used by `benchmarks.gpu` and by whoever has the engine on CUDA and torch there.
Memory bound: on the GPU two frames and two more per frame of look-ahead, and about twenty full-size float planes; three
frames of page-locked memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engines import nearest_size
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


class GpuFrames:
    """Mattes and composites the pictures of one stream, in order. One thread at a time.

    network: float32 (1, 4, h, w) on `device` to float32 (1, 1, h, w), queued on the current stream; sizes: its own.
    blur: strength of the frame's own blur as the background, 0 to 1; None: the planes that `push` is given.
    foreground: whether the person's own colours are estimated. capture: replay a CUDA graph, on CUDA.
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
        self._needs_background = blur is None
        if self._cuda:
            torch.cuda.synchronize(self._device)  # what was made so far was made on another stream
        self._stream: Any = self._torch.cuda.Stream(self._device) if self._cuda else None
        self._graph: Any = None
        self._pushes = 0
        self._seconds: float | None = None
        self._waiting: deque[Frame] = deque()  # on their way in, held for their future
        self._flying: deque[tuple[Frame, Tensor, Any, tuple[Tensor, ...]]] = deque()

    # ---- from and to the host

    def push(self, frame: Frame, background: tuple[Array, ...] | None = None) -> list[Frame]:
        """Takes the next frame with its background (planes like its own; None with `blur`); returns those that are
        finished, oldest first, as new planes. Raises MattingError when the network answered nonsense."""
        if [p.shape for p in frame.planes[:3]] != self._steps.shapes or frame.planes[0].dtype != np.uint8:
            raise ValueError(f"the stream changed to {frame!r}: start anew for it")
        if (background is None) == self._needs_background:
            raise ValueError("a frame comes with its background, or with blur without")
        if background is not None and [p.shape for p in background[:3]] != self._steps.shapes:
            raise ValueError(f"the background {[p.shape for p in background]} does not have the planes of {frame!r}")
        elapsed = -1.0 if self._seconds is None else frame.seconds - self._seconds
        self._seconds = frame.seconds
        self._waiting.append(frame)
        self._submit(frame.planes, background, elapsed if 0 <= elapsed <= GAP else -1.0)
        return self._landed(IN_FLIGHT)

    def flush(self) -> list[Frame]:
        """End of stream: all that is still on its way. The past is forgotten."""
        while self._waiting:
            self._submit(None, None, -1.0)
        self._seconds = None
        self._pushes = 0
        return self._landed(0)

    def _submit(self, planes: tuple[Array, ...] | None, background: tuple[Array, ...] | None, elapsed: float) -> None:
        """Queues one round of work. elapsed: seconds since the picture before; negative: it has no past."""
        torch = self._torch
        with torch.inference_mode(), torch.cuda.stream(self._stream):
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
        """`FrameSteps.step`, as a CUDA graph from the third round on."""
        torch = self._torch
        if self._graph is not None:
            self._graph.replay()
            return
        if self._capture and self._pushes == 2:
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


def _pack(planes: tuple[Array, ...], out: Array) -> None:
    at = 0
    for plane in planes[:3]:
        np.copyto(out[at : at + plane.size].reshape(plane.shape), plane)
        at += plane.size
