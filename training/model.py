"""The lightweight U-Net: RGB and the previous matte in, the alpha matte out.

Used in training and export only; a user runs the exported ONNX graph.

The plan of the network, for a 288x160 input (H and W are multiples of 16):

    input 4 x H x W ── stem /2 ── stage 1 /4 ── stage 2 /8 ── stage 3 /16, with context
                         │           │             │             │
    alpha 1 x H x W ◀─ head ◀──── decoder 1 ◀── decoder 2 ◀── decoder 3

Dense 3x3 convolutions (on CPUs faster per multiply than depthwise ones), encoder-decoder with skips
after Ronneberger et al. 2015 (U-Net); the deepest stage widens its view with dilation (Yu & Koltun 2016)
and a pooled global gate (Hu et al. 2018, squeeze-and-excitation). The head predicts the 2x2 pixels of
each half-resolution cell at once (Shi et al. 2016, sub-pixel convolution), so nothing runs at full size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetConfig:
    """Widths of the stem and of the stages at 1/4, 1/8 and 1/16; blocks of each stage; head width."""

    stem: int = 16
    widths: tuple[int, int, int] = (32, 64, 128)
    blocks: tuple[int, int, int] = (1, 2, 4)
    head: int = 16


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(filters, biases) of a convolution and the norm after it, where that is held still; both learn on in these."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def held(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether a norm is held still in a training step on a CPU (learning, or answering for pasts or as a teacher): then
    it is worth folding."""
    return not norm.training and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def normed(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """norm(conv(x)), in one pass where the norm is held still; not for a `conv` that pads in a way of its own."""
    if not held(norm, x):
        out: Tensor = norm(conv(x))
        return out
    weight, bias = folded(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Normed(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the convolution's shape."""
        conv, norm, *rest = self
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        x = normed(conv, norm, x)
        return F.relu(x, inplace=True) if rest else x


def conv(cin: int, cout: int, *, stride: int = 1, dilation: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the norm folds into the convolution on export."""
    return Normed(
        nn.Conv2d(cin, cout, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.BatchNorm2d(cout),
        nn.ReLU(inplace=True),
    )


class Block(nn.Module):
    """Two convolutions around an identity (He et al. 2016)."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return F.relu(x + self.second(self.first(x)))


class Gate(nn.Module):
    """Channel gate from the picture's mean: lets one part of the frame know what the rest holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // 4, 1), nn.ReLU(), nn.Conv2d(width // 4, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x * torch.sigmoid(self.weigh(x))


class Up(nn.Module):
    """One decoder step: narrow, enlarge twice, add the narrowed skip, refine."""

    def __init__(self, deep: int, skip: int, out: int) -> None:
        super().__init__()
        self.deep = conv(deep, out, kernel=1)
        self.skip = conv(skip, out, kernel=1)
        self.refine = conv(out, out)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """`deep` at half the size of `skip`; the result at the size of `skip`."""
        up = F.interpolate(self.deep(deep), scale_factor=2.0, mode="bilinear", align_corners=False)
        out: Tensor = self.refine(up + self.skip(skip))
        return out


class UNet(nn.Module):
    """Matting network. Input float (N, 4, H, W): RGB in 0..1, then the previous raw matte in 0..1
    (all zero: no past). Output float (N, 1, H, W): logits while training, alpha in 0..1 in `eval()`."""

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or UNetConfig()
        w1, w2, w3 = c.widths
        self.stem = conv(4, c.stem, stride=2)
        self.stage1 = nn.Sequential(conv(c.stem, w1, stride=2), *[Block(w1) for _ in range(c.blocks[0])])
        self.stage2 = nn.Sequential(conv(w1, w2, stride=2), *[Block(w2) for _ in range(c.blocks[1])])
        self.stage3 = nn.Sequential(
            conv(w2, w3, stride=2), *[Block(w3, (1, 2, 3, 2)[i % 4]) for i in range(c.blocks[2])], Gate(w3)
        )
        self.up2 = Up(w3, w2, w2)
        self.up1 = Up(w2, w1, w1)
        self.up0 = Up(w1, c.stem, c.head)
        self.head = nn.Conv2d(c.head, 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = torch.cat((x[:, :3] * 2.0 - 1.0, x[:, 3:]), dim=1)
        x0 = self.stem(x)
        x1 = self.stage1(x0)
        x2 = self.stage2(x1)
        x3 = self.stage3(x2)
        y = self.up0(self.up1(self.up2(x3, x2), x1), x0)
        logits: Tensor = self.shuffle(self.head(y))
        return logits if self.training else torch.sigmoid(logits)


def count_macs(model: nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates of the convolutions for one picture of the given size."""
    total = 0

    def hook(module: nn.Conv2d, _inputs: object, out: Tensor) -> None:
        nonlocal total
        total += out[0, 0].numel() * module.weight.numel()

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(torch.zeros(1, 4, height, width))
    for handle in handles:
        handle.remove()
    return total
