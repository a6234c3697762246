"""A network of the shape of Robust Video Matting's MobileNetV3 variant (Lin et al. 2021), to measure beside ours.

Written anew from the paper's description, with random weights: it mattes nothing, but it computes as much. An encoder
(MobileNetV3-Large, Howard et al. 2019, its last stage dilated), LR-ASPP, a decoder with convolutional GRUs, all on the
picture reduced by a ratio, and a learned guided filter that brings the matte to the picture's size.
Used by `benchmarks.gpu`. Memory bound: 15 MB of weights, the activations of one picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Kernel, expanded and output channels, gate, stride, dilation.
_STAGES = (
    ((3, 16, 16, False, 1, 1),),
    ((3, 64, 24, False, 2, 1), (3, 72, 24, False, 1, 1)),
    ((5, 72, 40, True, 2, 1), (5, 120, 40, True, 1, 1), (5, 120, 40, True, 1, 1)),
    (
        *((3, e, 80, False, s, 1) for e, s in ((240, 2), (200, 1), (184, 1), (184, 1))),
        *((3, e, 112, True, 1, 1) for e in (480, 672)),
        *((5, e, 160, True, 1, 2) for e in (672, 960, 960)),
    ),
)


def conv(
    cin: int, cout: int, kernel: int = 3, *, act: type[nn.Module] | None = nn.ReLU, **options: int
) -> nn.Sequential:
    """Convolution with the norm folded in, and an activation."""
    pad = options.get("dilation", 1) * (kernel // 2)
    layers: list[nn.Module] = [nn.Conv2d(cin, cout, kernel, padding=pad, **options)]  # type: ignore[arg-type]
    return nn.Sequential(*layers, *([act()] if act else []))


class Inverted(nn.Module):
    """Expand, filter each channel, gate, narrow."""

    def __init__(
        self, cin: int, k: int, wide: int, cout: int, gated: bool, stride: int, dilation: int, hard: bool
    ) -> None:
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        self.widen = conv(cin, wide, 1, act=act) if wide != cin else nn.Identity()
        self.filter = conv(wide, wide, k, act=act, stride=stride, dilation=dilation, groups=wide)
        self.weigh = (
            nn.Sequential(conv(wide, wide // 4, 1), conv(wide // 4, wide, 1, act=nn.Hardsigmoid)) if gated else None
        )
        self.narrow = conv(wide, cout, 1, act=None)
        self.same = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        y = self.filter(self.widen(x))
        if self.weigh is not None:
            y = y * self.weigh(y.mean((2, 3), keepdim=True))
        y = self.narrow(y)
        out: Tensor = x + y if self.same else y
        return out


class Gru(nn.Module):
    """A convolutional GRU on the second half of the channels (Ballas et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.gates = nn.Conv2d(2 * half, 2 * half, 3, padding=1)
        self.new = nn.Conv2d(2 * half, half, 3, padding=1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(the features, the state for the next picture)."""
        kept, x = x.chunk(2, 1)
        reset, update = torch.sigmoid(self.gates(torch.cat((x, state), 1))).chunk(2, 1)
        new = torch.tanh(self.new(torch.cat((x, reset * state), 1)))
        state = (1 - update) * state + update * new
        return torch.cat((kept, state), 1), state


class RvmShape(nn.Module):
    """Picture (1, 3, H, W) in 0..1 and four states to the matte (1, 1, H, W) and the states."""

    STATES = (16, 20, 40, 64)  # channels at 1/2, 1/4, 1/8 and 1/16 of the reduced picture

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, act=nn.Hardswish, stride=2)
        self.stages, width = nn.ModuleList(), 16
        for index, stage in enumerate(_STAGES):
            blocks = []
            for block in stage:
                blocks.append(Inverted(width, *block, index == 3))
                width = block[2]
            self.stages.append(nn.Sequential(*blocks))
        self.last = conv(width, 960, 1, act=nn.Hardswish)
        self.aspp, self.aspp_gate = conv(960, 128, 1), conv(960, 128, 1, act=nn.Sigmoid)
        self.bottom = Gru(128)
        self.ups = nn.ModuleList([conv(128 + 40 + 3, 80), conv(80 + 24 + 3, 40), conv(40 + 16 + 3, 32)])
        self.grus = nn.ModuleList([Gru(80), Gru(40), Gru(32)])
        self.out = nn.Sequential(conv(32 + 3, 16), conv(16, 16))
        self.project = nn.Conv2d(16, 4, 1)
        self.guide = nn.Sequential(conv(4 * 2 + 16, 16, 1), conv(16, 16, 1), nn.Conv2d(16, 4, 1))

    def states(self, height: int, width: int) -> list[Tensor]:
        """Empty ones for a reduced picture of that size."""
        weight = self.project.weight
        return [
            weight.new_zeros(1, c, -(-height // k), -(-width // k))
            for c, k in zip(self.STATES, (2, 4, 8, 16), strict=True)
        ]

    def forward(self, picture: Tensor, states: list[Tensor], ratio: float) -> tuple[Tensor, list[Tensor]]:
        """See the class."""
        small = picture
        if ratio != 1:
            small = F.interpolate(picture, scale_factor=ratio, mode="bilinear", align_corners=False)
        features, x = [], self.stem((small - 0.45) / 0.225)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        x = self.last(x)
        x = self.aspp(x) * self.aspp_gate(x.mean((2, 3), keepdim=True))
        x, bottom = self.bottom(x, states[3])
        kept = [bottom]
        pictures = [small]
        for _ in range(3):
            pictures.append(F.avg_pool2d(pictures[-1], 2, ceil_mode=True, count_include_pad=False))
        for k, (up, gru) in enumerate(zip(self.ups, self.grus, strict=True)):
            skip, source = features[2 - k], pictures[3 - k]
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)[
                ..., : skip.shape[2], : skip.shape[3]
            ]
            x, state = gru(up(torch.cat((x, skip, source), 1)), states[2 - k])
            kept.insert(0, state)
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)[
            ..., : small.shape[2], : small.shape[3]
        ]
        hidden = self.out(torch.cat((x, small), 1))
        coarse = self.project(hidden)
        if ratio == 1:
            return coarse[:, 3:].clamp(0, 1), kept
        return self._refined(picture, small, hidden, coarse), kept

    def _refined(self, picture: Tensor, small: Tensor, hidden: Tensor, coarse: Tensor) -> Tensor:
        """The deep guided filter (Wu et al. 2018): a linear function per pixel, fitted small and applied large."""
        fine = torch.cat((picture, picture.mean(1, keepdim=True)), 1)
        base = torch.cat((small, small.mean(1, keepdim=True)), 1)

        def blur(x: Tensor) -> Tensor:
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

        mean_x, mean_y = blur(base), blur(coarse)
        cov, var = blur(base * coarse) - mean_x * mean_y, blur(base * base) - mean_x * mean_x
        slope = self.guide(torch.cat((cov, var, hidden), 1))
        offset = mean_y - slope * mean_x
        size = picture.shape[2:]
        slope, offset = (F.interpolate(t, size=size, mode="bilinear", align_corners=False) for t in (slope, offset))
        return (slope * fine + offset)[:, 3:].clamp(0, 1)
