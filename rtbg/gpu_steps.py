"""One frame's work on the GPU, as torch operations on tensors that stay there: see `rtbg.gpu_frames`, which uses it.

The steps are those of `rtbg.matting`, `rtbg.smoothing`, `rtbg.islands`, `rtbg.upsampling`, `rtbg.foreground`,
`rtbg.backgrounds.blur` and `rtbg.composite`, in that order, with their constants and, where that shows, their rounding.
Nothing here waits for the GPU or looks at a pixel from the host, so that it can be captured as a CUDA graph.
Memory bound: two frames and two more per frame of look-ahead, and about twenty full-size float planes for a moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rtbg import foreground as fg
from rtbg import islands as isl
from rtbg import matting as mat
from rtbg import smoothing as smo
from rtbg import upsampling as ups
from rtbg.backgrounds import blur as blu
from rtbg.color import is_full, weights, yuv_to_rgb_matrix
from rtbg.frame import StreamInfo
from rtbg.gpu_ops import Ops, Tensor, box, filtered, gaussian, sampled
from rtbg.grid import CELLS, Grid
from rtbg.matting import Refinement


class FrameSteps:
    """`step` takes the packed planes in `given`, those of the background in `behind` and `control`, and leaves the
    finished planes of the frame `lookahead` pictures before in `made`, followed by a byte that is 1 where the network
    answered nonsense. `fed` is then what the network was given.

    control: float32, seconds since the picture before, and 1 where it has no past. The other arguments are those of
    `rtbg.gpu_frames.GpuFrames`; size: (width, height) of the network's input, upright."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        size: tuple[int, int],
        info: StreamInfo,
        refinement: Refinement,
        *,
        device: Any,
        blur: float | None,
        foreground: bool,
    ) -> None:
        self._ops = ops = Ops(device)
        self._torch = torch = ops.torch
        self._refinement, self._network, self._foreground = refinement, network, foreground
        self._size = (info.height, info.width)
        self._turn = info.rotation // 90
        self.lookahead = refinement.lookahead if refinement.smoothing else 0
        w, h = size[::-1] if info.rotation in (90, 270) else size
        self._small = (h, w)
        self.bytes = info.width * info.height * 3 // 2
        matrix = yuv_to_rgb_matrix(*weights(info.color, info.height), is_full(info.color))
        self._rgb = torch.from_numpy(np.rint(matrix * 1024).astype(np.float32)).to(device)
        self._calming = (
            torch.tensor([1, 4, 6, 4, 1], dtype=torch.float32, device=device) / 16
        )  # cv2.GaussianBlur (5, 5)
        self._reduce = [ops.reduction((info.height // k, info.width // k), (h, w)) for k in (1, 2, 2)]
        self._setup_grid(info)
        self._setup_blur(info, blur)
        self._setup_state(h, w)

    def _setup_grid(self, info: StreamInfo) -> None:
        ops, (h, w) = self._ops, self._small
        grid = Grid.over(info.width, info.height, CELLS, even=True)
        self._scale, shape = grid.scale, grid.shape
        self._grid = shape
        fy, fx = h * grid.scale / info.height, w * grid.scale / info.width
        self._to_grid = ops.pair(
            sampled((np.arange(shape[0]) + 0.5) * fy - 0.5, h), sampled((np.arange(shape[1]) + 0.5) * fx - 0.5, w)
        )
        (rows, high), (columns, wide) = ups.reach((h, w), grid)
        self._rows, self._columns = (ops.torch.from_numpy(at).to(ops.device) for at in (rows, columns))
        self._seen_around, self._margins = (high, wide), (wide // 2, wide // 2, high // 2, high // 2)
        self._radius = max(1, round(max(shape) * ups.RADIUS))
        self._fit_box = ops.blur(shape, 2 * self._radius + 1)
        self._five = ops.blur(shape, 5)
        self._near = ops.pair(*(filtered(n, np.array(fg.NEAR), mirror="reflect") for n in shape))
        self._far = ops.blur(shape, fg.FAR)
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
        self._halves = info.height >= 2 * shape[0] and info.width >= 2 * shape[1]
        start = (info.height // 2, info.width // 2) if self._halves else (info.height, info.width)
        self._taints = ops.reduction(start, shape, odd=True)
        self._blurs = [
            ops.pair(*(gaussian(n, blu.SMALL_SIGMA, mirror="symmetric") for n in shape)),
        ]
        for k in range(1, 4):
            side = min(2 * round(blu.SMALL_SIGMA * 3**k) + 1, 2 * max(shape) - 1)
            sides = [min(side, 2 * n - 1) for n in shape]
            self._blurs.append(ops.pair(*(box(n, s, mirror="symmetric") for n, s in zip(shape, sides, strict=True))))

    def _setup_state(self, h: int, w: int) -> None:
        torch, held = self._torch, self.lookahead + 1

        def zeros(*shape: int, dtype: Any = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._ops.device)

        height, width = self._size
        self.shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
        uint8 = torch.uint8
        self.given, self.behind = zeros(self.bytes, dtype=uint8), zeros(self.bytes, dtype=uint8)
        self.made, self.control = zeros(self.bytes + 1, dtype=uint8), zeros(2)
        turned = (w, h) if self._turn % 2 else (h, w)
        self._seen, self._past = zeros(h, w), zeros(1, *turned)
        self.fed = zeros(1, 4, *turned)
        self._mean, self._average, self._age = zeros(h, w), zeros(h, w), zeros(1)
        self._faded, self._cells, self._before = zeros(2, h, w), zeros(3, *self._grid), zeros(height, width)
        # Of the pictures held for their future, oldest first:
        self._frames, self._backs = zeros(held, self.bytes, dtype=uint8), zeros(held, self.bytes, dtype=uint8)
        self._mattes, self._smoothed, self._weights, self._pictures = (zeros(held, h, w) for _ in range(4))
        self._elapsed, self._fresh = zeros(held), torch.ones(held, device=self._ops.device)

    # ---- one frame

    def step(self) -> None:
        """One frame, and the state one frame further."""
        torch = self._torch
        alpha, planes, cells, sane = self.matte()
        behind = self._planes(self._backs[0]) if self._blur is None else self._blurred(planes, alpha)
        if self._foreground:
            planes = self._own_colours(planes, alpha, cells)
        self.made[:-1].copy_(torch.cat([p.flatten() for p in self._blend(planes, behind, alpha)]))
        self.made[-1:].copy_((~sane)[None])

    def matte(self) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
        """The first half of `step`: (matte, whole numbers 0 to 255 of the frame's size; its planes and their means on
        the grid, all float32; whether the network's last answer is a matte)."""
        torch = self._torch
        elapsed, gap = self.control[0], self.control[1]
        rgb, grey = self._reduced()
        (least, most), change = mat.CUT_WITHIN, (grey - self._seen).abs().mean()
        now, before = grey.mean(), self._seen.mean()
        beside = (grey - self._seen - (now - before)).abs().mean()
        moved = (change > least) & (beside > ((now + before) * (mat.CUT / 2)).clamp(min=least))
        new = torch.maximum(gap, ((change > most) | moved).float())
        self._seen.copy_(grey)
        alpha, sane = self._infer(rgb, new)
        self._remember(self._frames, self.given)
        if self._blur is None:
            self._remember(self._backs, self.behind)
        self._remember(self._elapsed, elapsed)
        self._remember(self._fresh, new)
        matte = self._smooth(alpha, grey, elapsed, new)
        elapsed, new = self._elapsed[0], self._fresh[0]  # of the picture that is finished now
        if self._refinement.islands:
            matte = self._without_islands(matte, elapsed, new)
        planes = self._planes(self._frames[0])
        means = [self._ops.means(p, self._scale // (2 if k else 1)) for k, p in enumerate(planes)]
        cells = torch.stack(means)
        return self._enlarge(matte, planes[0], cells, elapsed, new), planes, cells, sane

    def _reduced(self) -> tuple[Tensor, Tensor]:
        """The small RGB picture (3, h, w) and its grey: codes."""
        torch = self._torch
        small = [reduce(p) for reduce, p in zip(self._reduce, self._planes(self.given), strict=True)]
        # As OpenCV does it for codes: in whole 1024ths, rounded once.
        rgb = torch.einsum("ij,jhw->ihw", self._rgb[:, :3], torch.stack(small)) + self._rgb[:, 3, None, None]
        rgb = ((rgb + 512) * (1 / 1024)).floor().clamp(0, 255)
        return rgb, (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]).round()

    def _infer(self, rgb: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """(the network's matte (h, w), as stored; whether it is one)."""
        torch = self._torch
        upright = torch.rot90(rgb, self._turn, (1, 2)) if self._turn else rgb
        self.fed[0].copy_(torch.cat((upright * (1 / 255), self._past * (1 - new))))
        alpha = self._network(self.fed)[0]
        sane = (alpha >= -0.01).all() & (alpha <= 1.01).all()  # False for NaN
        alpha = torch.nan_to_num(alpha).clamp(0, 1)
        self._past.copy_(alpha)
        return (torch.rot90(alpha, -self._turn, (1, 2))[0] if self._turn else alpha[0]), sane

    def _planes(self, flat: Tensor) -> tuple[Tensor, ...]:
        """float32 planes of packed bytes."""
        sizes = [h * w for h, w in self.shapes]
        return tuple(p.view(s).float() for p, s in zip(flat.split(sizes), self.shapes, strict=True))

    def _remember(self, ring: Tensor, value: Tensor) -> None:
        """The newest of what is held, at the end."""
        if self.lookahead:
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
        if not self.lookahead:
            return smoothed
        for ring, value in (
            (self._mattes, matte),
            (self._smoothed, smoothed),
            (self._weights, weight),
            (self._pictures, picture),
        ):
            self._remember(ring, value)
        weights = 1 / self._weights[0].clamp(min=1e-3)
        total = self._smoothed[0] * weights
        way, alive = torch.zeros_like(total), torch.ones_like(elapsed)
        later = torch.zeros_like(elapsed)
        for k in range(1, self.lookahead + 1):
            later = later + self._elapsed[k]
            way = way + self._changes(self._pictures[k], self._pictures[k - 1], smo.STEP).clamp(min=0)
            # Nothing beyond a cut counts, nor anything after that.
            alive = alive * (1 - self._fresh[k])
            part = alive * (1 - ops.ramp(way, smo.CALM, smo.MOVED)) * torch.exp(-later / (smo.STILL * strength))
            total = total + part * self._mattes[k]
            weights = weights + part
        return total / weights

    def _changes(self, picture: Tensor, reference: Tensor, times: float = 2.0) -> Tensor:
        difference = self._ops.apply((picture - reference).abs(), self._five_small)
        some = difference[::4, ::4].flatten().sort().values
        noise = some[some.shape[0] // 2]
        return difference - times * noise.clamp(max=smo.NOISE)

    def _without_islands(self, matte: Tensor, elapsed: Tensor, new: Tensor) -> Tensor:
        """`rtbg.islands.Islands.push`, and `without_haze`."""
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
        return ops.ramp(kept + (1 - kept) * faded[1], isl.HAZE, 1.0)

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
        kernel = self._calming
        calm = functional.pad(luma[None, None], (2, 2, 2, 2), mode="replicate")
        calm = functional.conv2d(functional.conv2d(calm, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1))[0, 0]
        big = ops.enlarged(torch.stack((rise, base)), self._scale, height, width)
        band = (spread > ups.BAND[0]) & ~self._sure(small, guides[0], rise, base)
        touched = ops.dilate(band.float(), 3)[:, None, :, None].expand(-1, self._scale, -1, self._scale)
        big = big * touched.reshape(touched.shape[0] * self._scale, -1)[:height, :width]
        alpha = (alpha + big[0] * calm + big[1]).round().clamp(0, 255)
        kept = ((alpha - self._before).abs() <= ups.LEAST) & (alpha > 0) & (alpha < 255) & (new == 0)
        alpha = torch.where(kept, self._before, alpha)
        self._before.copy_(alpha)
        return alpha

    def _sure(self, small: Tensor, luma: Tensor, rise: Tensor, base: Tensor) -> Tensor:
        """`rtbg.upsampling._sure`. small: codes (1, 1, h, w)."""
        torch, ops, functional = self._torch, self._ops, self._ops.functional
        ends = []
        for sign in (1, -1):
            near = functional.pad(sign * small, self._margins, value=-math.inf)
            ends.append(functional.max_pool2d(near, self._seen_around, 1)[0, 0][self._rows][:, self._columns])
        most, least = ends[0], -ends[1]
        change, steep = rise * luma * 255 + base, rise.abs()
        slack = steep * (ups.NOISE * 255 + (ops.dilate(luma, 3) + ops.dilate(-luma, 3)) * (255 / 2))
        return torch.logical_or((most == 0) & (change < -slack), (least == 255) & (change > slack))

    def _calmed(self, cells: Tensor, elapsed: Tensor, new: Tensor) -> Tensor:
        torch, ops = self._torch, self._ops
        change = ops.apply((cells - self._cells).abs().amax(0), self._five)
        weight = torch.maximum(ops.ramp(change, *ups.MOVED), 1 - torch.exp(-elapsed / ups.STILL))
        cells = torch.where(new > 0, cells, self._cells + weight * (cells - self._cells))
        self._cells.copy_(cells)
        return cells

    def _fit(self, guides: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """`rtbg.native.grid.fit`, over the whole grid."""
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
        spread = ops.dilate(ops.halved(alpha) if self._halves else alpha, 3)
        weight = (1 - self._taints(spread) * (1 / (255 * blu.TAINTED))).clamp(0, 1)
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
            for f, s in zip(filled, self.shapes, strict=True)
        )

    def _own_colours(self, planes: tuple[Tensor, ...], alpha: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
        """`rtbg.foreground.Foreground`."""
        torch, ops = self._torch, self._ops
        share = ops.means(alpha, self._scale) * (1 / 255)
        person, behind = self._colours(cells, share)
        colours = torch.stack((person, person - behind), 1)
        half, sited = ops.functional.avg_pool2d(alpha[None, None], 2)[0, 0], self._sited(alpha)
        done = []
        for k, (plane, own) in enumerate(zip(planes, colours, strict=True)):
            a = (alpha if k == 0 else half) * (1 / 255)
            big, apart = ops.enlarged(own, self._scale if k == 0 else self._scale // 2, *self.shapes[k])
            way = (big + a * apart - plane) * (1 - a) * ((alpha if k == 0 else sited) > 0)
            done.append((plane + way).round().clamp(0, 255))
        return tuple(done)

    def _colours(self, cells: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """`rtbg.native.grid.colours`: (the person's, the background's), each (3, rows, columns)."""
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

    def _sited(self, alpha: Tensor) -> Tensor:
        """A matte at chroma's size: [1 2 1] horizontally, the mean of two rows."""
        rows = alpha[0::2] + alpha[1::2]
        left = self._torch.cat((rows[:, :1], rows[:, 1:-1:2]), 1)
        return (2 * rows[:, 0::2] + left + rows[:, 1::2]) * (1 / 8)

    def _blend(self, planes: tuple[Tensor, ...], behind: tuple[Tensor, ...], alpha: Tensor) -> list[Tensor]:
        """`rtbg.composite`: uint8 planes; chroma's alpha is [1 2 1] horizontally and the mean of two rows."""
        torch = self._torch
        chroma = self._sited(alpha).round()
        out = []
        for plane, back, a in zip(planes, behind, (alpha, chroma, chroma), strict=True):
            mixed = (plane * a * (1 / 255)).round() + (back * (255 - a) * (1 / 255)).round()
            out.append(mixed.clamp(0, 255).to(torch.uint8))
        return out
