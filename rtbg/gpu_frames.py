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

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engines import nearest_size
from rtbg import foreground as fg
from rtbg import islands as isl
from rtbg import matting as mat
from rtbg import smoothing as smo
from rtbg import upsampling as ups
from rtbg.backgrounds import blur as blu
from rtbg.color import is_full, weights, yuv_to_rgb_matrix
from rtbg.errors import MattingError
from rtbg.frame import Array, Frame, StreamInfo
from rtbg.gpu_ops import Ops, Tensor, box, gaussian, sampled
from rtbg.grid import Grid
from rtbg.matting import Refinement

IN_FLIGHT = 2


def refusal(
    info: StreamInfo, refinement: Refinement, *, show: str = "composite", wrap: float = 0.0, transparent: bool = False
) -> str:
    """Why such frames take the CPU path, for people; empty: they can go by way of the GPU."""
    if info.bits != 8 or info.chroma != (2, 2) or info.width % 2 or info.height % 2:
        return "the GPU path takes 8-bit 4:2:0 of even sizes"
    if min(info.width, info.height) < 64:
        return "the GPU path takes pictures from 64 pixels on"
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
        self._refinement = r = refinement or Refinement()
        if reason := refusal(info, r):
            raise ValueError(reason)
        self._ops = ops = Ops(device)
        self._torch = torch = ops.torch
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._network, self._foreground, self._capture = network, foreground, capture and self._cuda
        self._size = (info.height, info.width)
        self._turn = info.rotation // 90
        self._lookahead = r.lookahead if r.smoothing else 0
        shown = nearest_size(sizes, *info.shown_size)
        w, h = shown[::-1] if info.rotation in (90, 270) else shown
        self._small = (h, w)
        self._bytes = info.width * info.height * 3 // 2
        matrix = yuv_to_rgb_matrix(*weights(info.color, info.height), is_full(info.color))
        self._rgb = torch.from_numpy(np.rint(matrix * 1024).astype(np.float32)).to(self._device)
        self._reduce = [ops.reduction((info.height // k, info.width // k), (h, w)) for k in (1, 2, 2)]
        self._setup_grid(info)
        self._setup_blur(info, blur)
        self._setup_state(h, w)
        self._stream: Any = torch.cuda.Stream(self._device) if self._cuda else None
        self._graph: Any = None
        self._pushes = 0
        self._seconds: float | None = None
        self._waiting: deque[Frame] = deque()  # on their way in, held for their future
        self._flying: deque[tuple[Frame, Tensor, Any, tuple[Tensor, ...]]] = deque()

    # ---- from and to the host

    def push(self, frame: Frame, background: tuple[Array, ...] | None = None) -> list[Frame]:
        """Takes the next frame with its background (planes like its own; None with `blur`); returns those that are
        finished, oldest first, as new planes. Raises MattingError when the network answered nonsense."""
        if [p.shape for p in frame.planes[:3]] != self._shapes or frame.planes[0].dtype != np.uint8:
            raise ValueError(f"the stream changed to {frame!r}: start anew for it")
        elapsed = -1.0 if self._seconds is None else frame.seconds - self._seconds
        self._seconds = frame.seconds
        self._waiting.append(frame)
        self._submit(frame.planes, background, elapsed if 0 <= elapsed <= mat.GAP else -1.0)
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
        if planes is not None and background is None and self._blur is None:
            raise ValueError("without blur a frame comes with its background")
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            kept: list[Tensor] = []
            for target, given in ((self._given, planes), (self._behind, background)):
                if given is not None:
                    kept.append(self._pinned(self._bytes))
                    _pack(given, kept[-1].numpy())
                    target.copy_(kept[-1], non_blocking=True)
            kept.append(self._pinned(2, torch.float32))
            kept[-1].numpy()[:] = (max(elapsed, 0.0), float(elapsed < 0))
            self._control.copy_(kept[-1], non_blocking=True)
            self._work()
            self._pushes += 1
            if self._pushes > self._lookahead:
                down = self._pinned(self._bytes + 1)
                down.copy_(self._made, non_blocking=True)
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
        luma, chroma = self._shapes[0], self._shapes[1]
        a, b = luma[0] * luma[1], chroma[0] * chroma[1]
        return data[:a].reshape(luma), data[a : a + b].reshape(chroma), data[a + b : a + 2 * b].reshape(chroma)

    def _work(self) -> None:
        """`_step`, as a CUDA graph from the third round on."""
        torch = self._torch
        if self._graph is not None:
            self._graph.replay()
            return
        if self._capture and self._pushes == 2:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                    self._step()
            except RuntimeError:  # an operator that cannot be captured: as before, then
                self._capture = False
            else:
                self._graph = graph
                graph.replay()
                return
        self._step()

    # ---- what stays

    def _setup_grid(self, info: StreamInfo) -> None:
        ops, (h, w) = self._ops, self._small
        grid = Grid.over(info.width, info.height, ups.CELLS, even=True)
        assert grid == Grid.over(info.width, info.height, fg.CELLS, even=True)
        self._scale, shape = grid.scale, grid.shape
        self._grid = shape
        fy, fx = h * grid.scale / info.height, w * grid.scale / info.width
        self._to_grid = ops.pair(
            sampled((np.arange(shape[0]) + 0.5) * fy - 0.5, h), sampled((np.arange(shape[1]) + 0.5) * fx - 0.5, w)
        )
        self._radius = max(1, round(max(shape) * ups.RADIUS))
        self._fit_box = ops.blur(shape, 2 * self._radius + 1)
        self._five = ops.blur(shape, 5)
        self._near, self._far = ops.blur(shape, fg.NEAR), ops.blur(shape, fg.FAR)
        self._three_small, self._five_small = ops.blur((h, w), 3), ops.blur((h, w), 5)

    def _setup_blur(self, info: StreamInfo, strength: float | None) -> None:
        self._blur = strength
        if strength is None:
            return
        ops = self._ops
        w, h = info.shown_size
        sigma = (blu.WEAKEST + (blu.STRONGEST - blu.WEAKEST) * strength) * min(w, h)
        factor = min(1.0, blu.SMALL_SIGMA / sigma)
        if info.rotation in (90, 270):
            w, h = h, w
        shape = (min(info.height, max(2, round(h * factor))), min(info.width, max(2, round(w * factor))))
        self._shrinks = [ops.reduction((info.height // k, info.width // k), shape, odd=True) for k in (1, 2, 2)]
        self._blurs = [
            ops.pair(*(gaussian(n, blu.SMALL_SIGMA, mirror="symmetric") for n in shape)),
        ]
        for k in range(1, 4):
            side = min(2 * round(blu.SMALL_SIGMA * 3**k) + 1, 2 * max(shape) - 1)
            sides = [min(side, 2 * n - 1) for n in shape]
            self._blurs.append(ops.pair(*(box(n, s, mirror="symmetric") for n, s in zip(shape, sides, strict=True))))

    def _setup_state(self, h: int, w: int) -> None:
        torch, held = self._torch, self._lookahead + 1

        def zeros(*shape: int, dtype: Any = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        height, width = self._size
        self._shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
        uint8 = torch.uint8
        self._given, self._behind = zeros(self._bytes, dtype=uint8), zeros(self._bytes, dtype=uint8)
        self._made, self._control = zeros(self._bytes + 1, dtype=uint8), zeros(2)
        turned = (w, h) if self._turn % 2 else (h, w)
        self._seen, self._past = zeros(h, w), zeros(1, *turned)
        self._mean, self._average, self._age = zeros(h, w), zeros(h, w), zeros(1)
        self._faded, self._cells = zeros(2, h, w), zeros(3, *self._grid)
        # Of the pictures held for their future, oldest first:
        self._frames, self._backs = zeros(held, self._bytes, dtype=uint8), zeros(held, self._bytes, dtype=uint8)
        self._mattes, self._smoothed, self._weights, self._pictures = (zeros(held, h, w) for _ in range(4))
        self._elapsed, self._fresh = zeros(held), torch.ones(held, device=self._device)

    # ---- one frame

    def _step(self) -> None:
        """From `_given`, `_behind` and `_control` to `_made`, and the state one frame further."""
        torch = self._torch
        elapsed, gap = self._control[0], self._control[1]
        small = [reduce(p) for reduce, p in zip(self._reduce, self._planes(self._given), strict=True)]
        # As OpenCV does it for codes: in whole 1024ths, rounded once.
        rgb = torch.einsum("ij,jhw->ihw", self._rgb[:, :3], torch.stack(small)) + self._rgb[:, 3, None, None]
        rgb = ((rgb + 512) * (1 / 1024)).floor().clamp(0, 255)
        grey = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]).round()
        new = torch.maximum(gap, ((grey - self._seen).abs().mean() > mat.CUT).float())
        self._seen.copy_(grey)
        upright = torch.rot90(rgb, self._turn, (1, 2)) if self._turn else rgb
        x = torch.cat((upright * (1 / 255), self._past * (1 - new)))[None]
        alpha = self._network(x)[0]
        sane = (alpha >= -0.01).all() & (alpha <= 1.01).all()  # False for NaN
        alpha = torch.nan_to_num(alpha).clamp(0, 1)
        self._past.copy_(alpha)
        matte = torch.rot90(alpha, -self._turn, (1, 2))[0] if self._turn else alpha[0]
        self._remember(self._frames, self._given)
        self._remember(self._backs, self._behind)
        self._remember(self._elapsed, elapsed)
        self._remember(self._fresh, new)
        matte = self._smooth(matte, grey, elapsed, new)
        elapsed, new = self._elapsed[0], self._fresh[0]
        if self._refinement.islands:
            matte = self._without_islands(matte, elapsed, new)
        y, u, v = self._planes(self._frames[0])
        cells = torch.stack([self._ops.means(y, self._scale), *(self._ops.means(p, self._scale // 2) for p in (u, v))])
        full = self._enlarge(matte, y, cells, elapsed, new)
        planes, behind = (y, u, v), self._planes(self._backs[0])
        if self._blur is not None:
            behind = self._blurred(planes, full)
        if self._foreground:
            planes = self._own_colours(planes, full, cells)
        made = [p.flatten() for p in self._blend(planes, behind, full)]
        self._made[:-1].copy_(torch.cat(made))
        self._made[-1:].copy_((~sane)[None])

    def _planes(self, flat: Tensor) -> tuple[Tensor, ...]:
        """float32 planes of packed bytes."""
        sizes = [h * w for h, w in self._shapes]
        return tuple(p.view(s).float() for p, s in zip(flat.split(sizes), self._shapes, strict=True))

    def _remember(self, ring: Tensor, value: Tensor) -> None:
        """The newest of what is held, at the end."""
        if self._lookahead:
            ring[:-1].copy_(ring[1:].clone())
        ring[-1].copy_(value)

    def _smooth(self, matte: Tensor, grey: Tensor, elapsed: Tensor, new: Tensor) -> Tensor:
        """`rtbg.smoothing.Smoother.push`, then `TwoSided._finish` of the oldest held."""
        torch, ops, strength = self._torch, self._ops, self._refinement.smoothing
        if not strength:
            return matte
        picture = ops.apply(grey, self._three_small)
        age = self._age + elapsed
        tau = torch.clamp(smo.WARM_UP * age, max=smo.STILL * strength).clamp(min=1e-6)
        still = 1 - torch.exp(-elapsed / tau)
        astray = torch.maximum(still, 1 - torch.exp(-elapsed / smo.ASTRAY))
        apart = matte - self._mean
        weight = ops.ramp(apart.abs(), *smo.DISAGREE) * (astray - still) + still
        weight = torch.maximum(weight, ops.ramp(self._changes(picture, self._average), smo.CALM, smo.MOVED))
        weight = torch.where(new > 0, torch.ones_like(weight), weight)
        smoothed = torch.where(new > 0, matte, self._mean + apart * weight)
        share = 1 - torch.exp(-elapsed / smo.MEMORY)
        average = torch.where(new > 0, picture, self._average * (1 - share) + picture * share)
        self._age.copy_(age * (1 - new))
        self._mean.copy_(smoothed)
        self._average.copy_(average)
        if not self._lookahead:
            return smoothed
        for ring, value in (
            (self._mattes, matte),
            (self._smoothed, smoothed),
            (self._weights, weight),
            (self._pictures, picture),
        ):
            self._remember(ring, value)
        weights = 1 / self._weights[0]
        total = self._smoothed[0] * weights
        open_ = torch.ones_like(total)
        later = torch.zeros_like(elapsed)
        for k in range(1, self._lookahead + 1):
            later = later + self._elapsed[k]
            moved = ops.ramp(self._changes(self._pictures[k], self._pictures[0]), smo.CALM, smo.MOVED)
            # Nothing beyond a cut counts, nor anything after that.
            open_ = torch.minimum(open_, 1 - moved) * (1 - self._fresh[k])
            part = open_ * torch.exp(-later / (smo.STILL * strength))
            total = total + part * self._mattes[k]
            weights = weights + part
        return total / weights

    def _changes(self, picture: Tensor, reference: Tensor) -> Tensor:
        difference = self._ops.apply((picture - reference).abs(), self._five_small)
        some = difference[::4, ::4].flatten().sort().values
        count = some.shape[0]
        noise = (some[(count - 1) // 2] + some[count // 2]) / 2
        return difference - 2 * noise.clamp(max=smo.NOISE)

    def _without_islands(self, matte: Tensor, elapsed: Tensor, new: Tensor) -> Tensor:
        """`rtbg.islands.Islands.push`."""
        torch, ops = self._torch, self._ops
        found = []
        for values, areas in ((matte, isl.ISLAND), (1 - matte, isl.HOLE)):
            solid = values > isl.LEVEL
            low, high = (a * matte.numel() for a in areas)
            out = ops.components(solid, low, high)
            found.append(torch.where(solid & (out == 0), torch.zeros_like(out), ops.dilate(out, 3)))
        present = torch.stack(found)
        share = 1 - torch.exp(-elapsed / isl.FADE)
        mixed = self._faded * (1 - share) + present * share
        mixed = torch.where(mixed > 0.004, mixed, torch.zeros_like(mixed))
        faded = torch.where(new > 0, present, mixed)
        self._faded.copy_(faded)
        kept = matte - matte * faded[0]
        return kept + (1 - kept) * faded[1]

    def _enlarge(self, matte: Tensor, luma: Tensor, cells: Tensor, elapsed: Tensor, new: Tensor) -> Tensor:
        """`rtbg.upsampling.Upsampler`: whole numbers 0 to 255, float32 (H, W)."""
        torch, ops, functional = self._torch, self._ops, self._ops.functional
        height, width = self._size
        small = (matte * 255).round()[None, None]
        alpha = functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)[0, 0].round()
        if not self._refinement.guided:
            return alpha
        p = ops.apply(matte, self._to_grid)
        side = 2 * self._radius + 1
        spread = ops.dilate(p, side) + ops.dilate(-p, side)
        guides = self._calmed(cells * (1 / 255), elapsed, new)
        slope, offset = self._fit(guides, p)
        share = ops.ramp(spread, *ups.BAND) * (spread > ups.BAND[0])
        rise = slope * share * (ups.CONTRAST * 255 / 255)
        base = (offset * ups.CONTRAST - p + (0.5 - ups.CONTRAST / 2)) * share * 255
        kernel = torch.tensor([0.25, 0.5, 0.25], device=luma.device)
        calm = functional.pad(luma[None, None], (1, 1, 1, 1), mode="reflect")
        calm = functional.conv2d(functional.conv2d(calm, kernel.view(1, 1, 1, 3)), kernel.view(1, 1, 3, 1))[
            0, 0
        ].round()
        big = ops.enlarged(torch.stack((rise, base)), self._scale, height, width)
        return (alpha + big[0] * calm + big[1]).round().clamp(0, 255)

    def _calmed(self, cells: Tensor, elapsed: Tensor, new: Tensor) -> Tensor:
        torch, ops = self._torch, self._ops
        change = ops.apply((cells[0] - self._cells[0]).abs(), self._five)
        weight = torch.maximum(ops.ramp(change, *ups.MOVED), 1 - torch.exp(-elapsed / ups.STILL))
        cells = torch.where(new > 0, cells, self._cells + weight * (cells - self._cells))
        self._cells.copy_(cells)
        return cells

    def _fit(self, guides: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """`rtbg.upsampling.fit`, over the whole grid."""
        torch, ops = self._torch, self._ops
        y, u, v = guides
        stack = torch.stack((y, u, v, p, y * p, u * p, v * p, y * y, y * u, y * v, u * v, u * u, v * v))
        my, mu, mv, mp, cy, cu, cv, yy, yu, yv, uv, uu, vv = ops.apply(stack, self._fit_box)
        cy, cu, cv = cy - my * mp, cu - mu * mp, cv - mv * mp
        yu, yv, uv = yu - my * mu, yv - my * mv, uv - mu * mv
        yy = yy - my * my + ups.EPSILON
        uu, vv = uu - mu * mu + ups.EPSILON_CHROMA, vv - mv * mv + ups.EPSILON_CHROMA
        k11, k12, k13 = uu * vv - uv * uv, yv * uv - yu * vv, yu * uv - yv * uu
        k22, k23, k33 = yy * vv - yv * yv, yu * yv - yy * uv, yy * uu - yu * yu
        scale = 1 / (yy * k11 + yu * k12 + yv * k13).clamp(min=1e-12)
        ay = (k11 * cy + k12 * cu + k13 * cv) * scale
        au = (k12 * cy + k22 * cu + k23 * cv) * scale
        av = (k13 * cy + k23 * cu + k33 * cv) * scale
        offset = mp - ay * my - au * mu - av * mv
        ay, au, av, offset = ops.apply(torch.stack((ay, au, av, offset)), self._fit_box)
        return ay, offset + au * u + av * v

    def _blurred(self, planes: tuple[Tensor, ...], alpha: Tensor) -> tuple[Tensor, ...]:
        """`rtbg.backgrounds.blur`."""
        torch, ops = self._torch, self._ops
        spread = ops.dilate(self._shrinks[0](alpha), 3)
        weight = (1 - spread * (1 / (255 * blu.TAINTED))).clamp(0, 1)
        small = torch.stack([shrink(p) for shrink, p in zip(self._shrinks, planes, strict=True)])
        step = ops.apply(torch.cat((small * weight, weight[None])), self._blurs[0])
        total = step
        for k, blur in enumerate(self._blurs[1:], 1):
            step = ops.apply(step, blur)
            total = total + step * blu.FAINT**k
        everywhere = blu.FAINT**4
        sums, below = total[:3] + small.mean((1, 2), keepdim=True) * everywhere, total[3] + everywhere
        filled = ((sums / below) * 64).round() * (1 / 64)
        return tuple(
            ops.functional.interpolate(f[None, None], size=s, mode="bilinear", align_corners=False)[0, 0].round()
            for f, s in zip(filled, self._shapes, strict=True)
        )

    def _own_colours(self, planes: tuple[Tensor, ...], alpha: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
        """`rtbg.foreground.Foreground`."""
        torch, ops = self._torch, self._ops
        share = ops.means(alpha, self._scale) * (1 / 255)
        person, behind = self._colours(cells, share)
        towards = person + (person - behind) * share
        half = ops.functional.avg_pool2d(alpha[None, None], 2)[0, 0].round()
        done = []
        for k, (plane, own) in enumerate(zip(planes, towards, strict=True)):
            a = (alpha if k == 0 else half) * (1 / 255)
            big = ops.enlarged(own[None], self._scale if k == 0 else self._scale // 2, *self._shapes[k])[0]
            way = (big - plane) * torch.where(a > 0, 1 - a, a)
            done.append((plane + way).round().clamp(0, 255))
        return tuple(done)

    def _colours(self, cells: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """`rtbg.foreground.colours`: (the person's, the background's), each (3, rows, columns)."""
        torch, ops = self._torch, self._ops

        def mean(values: Tensor, weight: Tensor, *, wide: bool) -> Tensor:
            stack = torch.cat((values * weight, weight[None]))
            out = ops.apply(stack, self._near)
            if wide:
                out = out + fg.FAINT * ops.apply(stack, self._far)
                out = out + (fg.FAINT**2 * fg.HARDLY * stack.mean((1, 2), keepdim=True) + 1e-30)
            return out[:3] / out[3]

        shares = share, 1 - share
        first = [mean(cells, ops.ramp(s, fg.UNSURE, fg.SURE) + fg.HARDLY * s, wide=True) for s in shares]
        means = []
        for weight, mine, other in zip(shares, first, first[::-1], strict=True):
            own = mine + (cells - other - weight * (mine - other)) * weight
            means.append(mean(own, weight + 1e-4, wide=False))
        return means[0], means[1]

    def _blend(self, planes: tuple[Tensor, ...], behind: tuple[Tensor, ...], alpha: Tensor) -> list[Tensor]:
        """`rtbg.composite`: uint8 planes; chroma's alpha is [1 2 1] horizontally and the mean of two rows."""
        torch = self._torch
        rows = alpha[0::2] + alpha[1::2]
        left = torch.cat((rows[:, :1], rows[:, 1:-1:2]), 1)
        chroma = ((2 * rows[:, 0::2] + left + rows[:, 1::2]) * (1 / 8)).round()
        out = []
        for plane, back, a in zip(planes, behind, (alpha, chroma, chroma), strict=True):
            mixed = (plane * a * (1 / 255)).round() + (back * (255 - a) * (1 / 255)).round()
            out.append(mixed.clamp(0, 255).to(torch.uint8))
        return out


def _pack(planes: tuple[Array, ...], out: Array) -> None:
    at = 0
    for plane in planes[:3]:
        np.copyto(out[at : at + plane.size].reshape(plane.shape), plane)
        at += plane.size
