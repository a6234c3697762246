"""What the frame path on a GPU computes with: OpenCV's small filters and resizings as torch operations.

Everything linear on small pictures is a product with two matrices, which hold OpenCV's borders and positions exactly;
only what fills a whole frame uses torch's own kernels. Works on any torch device. torch is imported on use.
Used by `rtbg.gpu_frames`. Memory bound: the matrices, a few megabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from rtbg.color import at_most_halved
from rtbg.frame import Array

Tensor: TypeAlias = Any  # torch.Tensor, without importing torch


def area(n_out: int, n_in: int) -> Array:
    """float32 (n_out, n_in): means over equal shares of the line (INTER_AREA, shrinking)."""
    edges = np.arange(n_out + 1) * (n_in / n_out)
    cells = np.arange(n_in)
    low = np.maximum(edges[:-1, None], cells)
    high = np.minimum(edges[1:, None], cells + 1)
    return np.asarray(np.clip(high - low, 0, None) * (n_out / n_in), np.float32)


def sampled(positions: Array, n_in: int) -> Array:
    """float32 (len(positions), n_in): linear interpolation there, the ends repeated (INTER_LINEAR)."""
    at = np.clip(positions, 0, n_in - 1)
    left = np.minimum(at.astype(int), max(n_in - 2, 0))
    out = np.zeros((len(at), n_in), np.float32)
    rows = np.arange(len(at))
    out[rows, left] = 1 - (at - left)
    if n_in > 1:
        out[rows, left + 1] = at - left
    return out


def resized(n_out: int, n_in: int, *, shrink: bool) -> Array:
    """float32 (n_out, n_in): as cv2.resize, by area or linearly."""
    return area(n_out, n_in) if shrink else sampled((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, n_in)


def filtered(n: int, kernel: Array, *, mirror: str) -> Array:
    """float32 (n, n): a filter of odd length; mirror: "reflect" (BORDER_REFLECT_101), "symmetric" (BORDER_REFLECT)."""
    half = len(kernel) // 2
    if n == 1:
        return np.full((1, 1), kernel.sum(), np.float32)
    source = np.pad(np.arange(n), half, mode=mirror)  # type: ignore[call-overload]
    out = np.zeros((n, n))
    for k, weight in enumerate(kernel):
        np.add.at(out, (np.arange(n), source[k : k + n]), weight)
    return np.asarray(out, np.float32)


def box(n: int, side: int, *, mirror: str = "reflect") -> Array:
    """float32 (n, n): the mean of `side` neighbours (cv2.blur); side is odd."""
    return filtered(n, np.full(side, 1 / side), mirror=mirror)


def gaussian(n: int, sigma: float, *, mirror: str) -> Array:
    """float32 (n, n): cv2.GaussianBlur of float pictures with its own kernel size."""
    side = round(sigma * 8 + 1) | 1
    x = np.arange(side) - side // 2
    kernel = np.exp(-(x**2) / (2 * sigma * sigma))
    return filtered(n, kernel / kernel.sum(), mirror=mirror)


class Ops:
    """Operations on tensors (..., h, w) of one device."""

    def __init__(self, device: Any) -> None:
        import torch

        self.torch: Any = torch
        self.functional: Any = torch.nn.functional
        self.device = device

    def pair(self, rows: Array, columns: Array) -> tuple[Tensor, Tensor]:
        """Two matrices, for `apply`."""
        put = [self.torch.from_numpy(np.ascontiguousarray(m)).to(self.device) for m in (rows, columns.T)]
        return put[0], put[1]

    def blur(self, shape: tuple[int, int], side: int, *, mirror: str = "reflect") -> tuple[Tensor, Tensor]:
        """cv2.blur for pictures of that shape, for `apply`."""
        return self.pair(box(shape[0], side, mirror=mirror), box(shape[1], side, mirror=mirror))

    def apply(self, x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        """rows @ x @ columns."""
        return pair[0] @ x @ pair[1]

    def halved(self, plane: Tensor) -> Tensor:
        """Half the size of even sides, by INTER_AREA on codes: it rounds halves up, which adds up step by step."""
        return (self.functional.avg_pool2d(plane[None, None], 2)[0, 0] + 0.5).floor()

    def reduction(
        self, shape: tuple[int, int], size: tuple[int, int], *, odd: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """What `rtbg.color.reduce` does with a plane of codes (height, width), to a size likewise: halves as long as
        that fits, then by area, or linearly where it grows or shrinks to nearly a half. odd: halves odd sides too, as
        `rtbg.backgrounds.blur`."""
        (height, width), steps = shape, list[Callable[[Tensor], Tensor]]()

        def towards(rows: int, columns: int, *, shrink: bool) -> Callable[[Tensor], Tensor]:
            pair = self.pair(resized(rows, height, shrink=shrink), resized(columns, width, shrink=shrink))
            return lambda plane: self.apply(plane, pair).round()

        for allowed in (True, False) if odd else (False,):
            while height >= 2 * size[0] and width >= 2 * size[1] and (allowed or not (height % 2 or width % 2)):
                uneven = height % 2 or width % 2
                steps.append(towards(height // 2, width // 2, shrink=True) if uneven else self.halved)
                height, width = height // 2, width // 2
        shrinks = height >= size[0] and width >= size[1]
        steps.append(towards(*size, shrink=shrinks and not at_most_halved((height, width), size)))

        def reduce(plane: Tensor) -> Tensor:
            for step in steps:
                plane = step(plane)
            return plane

        return reduce

    def means(self, plane: Tensor, scale: int) -> Tensor:
        """`Grid.means` of codes: a mean for each cell of `scale` pixels, those that hang over of what they hold."""
        functional = self.functional
        rows, columns = -(-plane.shape[0] // scale), -(-plane.shape[1] // scale)
        while scale % 2 == 0:
            down, right = -plane.shape[0] % 2, -plane.shape[1] % 2
            if down or right:  # repeated, which is what a mean over less comes to, nearly
                plane = functional.pad(plane[None, None], (0, right, 0, down), mode="replicate")[0, 0]
            plane, scale = self.halved(plane), scale // 2
        if scale > 1:
            options = {"ceil_mode": True, "count_include_pad": False}
            plane = functional.avg_pool2d(plane[None, None], scale, scale, **options)[0, 0].round()
        return plane[:rows, :columns]

    def dilate(self, x: Tensor, side: int) -> Tensor:
        """The largest of a square of odd side; beyond the border is nothing."""
        return self.functional.max_pool2d(x[None, None], side, 1, side // 2)[0, 0]

    def enlarged(self, cells: Tensor, scale: int, height: int, width: int) -> Tensor:
        """(n, rows, columns) times `scale`, bilinearly, cut to (n, height, width)."""
        if scale == 1:
            return cells[:, :height, :width]
        size = (cells.shape[1] * scale, cells.shape[2] * scale)
        big = self.functional.interpolate(cells[None], size=size, mode="bilinear", align_corners=False)[0]
        return big[:, :height, :width]

    def ramp(self, x: Tensor, low: float, high: float) -> Tensor:
        """As `rtbg.grid.ramp`."""
        return ((x - low) * (1 / (high - low))).clamp(0, 1)

    def components(self, solid: Tensor, low: float, high: float) -> Tensor:
        """float32 (h, w): for each pixel how small its 8-connected region of `solid` (bool) is: 1 up to the area `low`,
        0 from `high` on and outside regions.

        Labels spread by one pixel and then jump to what the pixel that they are named after has become, so small
        regions are done after a few rounds; one whose labels have not met by the end counts as large."""
        torch = self.torch
        height, width = solid.shape
        inside = solid.float()
        label = (
            torch.arange(1, height * width + 1, device=solid.device, dtype=torch.float32).view(height, width) * inside
        )
        for _ in range(ROUNDS):
            label = self.dilate(label, 3) * inside
            label = torch.cat((label.new_zeros(1), label.flatten()))[label.long()]
        outside = torch.where(solid, label, torch.full_like(label, float("inf")))
        mixed = ((self.dilate(label, 3) != label) | (-self.dilate(-outside, 3) != label)) & solid
        index = label.long().flatten()
        size = height * width + 1
        areas = torch.zeros(size, device=solid.device).index_add(0, index, inside.flatten())
        open_ = torch.zeros(size, device=solid.device).index_add(0, index, mixed.float().flatten())
        small = ((high - areas) / (high - low)).clamp(0, 1) * (open_ == 0)
        return small[index].view(height, width) * inside


# Rounds of `Ops.components`: twice what a winding region of 90 pixels was seen to need.
ROUNDS = 16
