"""Between RGB and planes of YUV, at the edges of the pipeline only.

Used by matting (small RGB for the network), backgrounds (once) and stills. Nothing here runs on full frames
of a video, but for the reduction in `small_rgb`, which reduces the planes before it converts them.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from rtbg.frame import BT470BG, BT709, BT2020_NCL, FULL, RANGE_UNSPECIFIED, UNSPECIFIED, Array, Color
from rtbg.known import halved

# Luma weights (Kr, Kb) of each matrix, ITU-T H.273 table 4.
_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    BT470BG: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    BT2020_NCL: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}


def weights(color: Color, height: int) -> tuple[float, float]:
    """(Kr, Kb). An untagged picture is BT.709 from 720 lines up and BT.601 below, as players take it."""
    if color.matrix in _WEIGHTS:
        return _WEIGHTS[color.matrix]
    return _WEIGHTS[BT709] if height >= 720 else _WEIGHTS[BT470BG]


def is_full(color: Color) -> bool:
    """Whether luma uses all codes; an untagged picture is limited (16 to 235)."""
    return color.range == FULL


@lru_cache(maxsize=64)
def rgb_to_yuv_matrix(kr: float, kb: float, full: bool, bits: int = 8) -> Array:
    """float64 (3, 4): Y, U, V (codes of that many bits, 8 or 10) from R, G, B in 0..255 and 1."""
    kg = 1 - kr - kb
    y = np.array([kr, kg, kb])
    u = (np.array([0, 0, 1.0]) - y) / (2 * (1 - kb))
    v = (np.array([1.0, 0, 0]) - y) / (2 * (1 - kr))
    step = 1 << (bits - 8)
    if full:
        return np.column_stack((np.stack((y, u, v)) * (top_code(bits) / 255), np.multiply([0, 128, 128], step)))
    return np.column_stack((np.stack((y * 219, u * 224, v * 224)) * (step / 255), np.multiply([16, 128, 128], step)))


@lru_cache(maxsize=64)
def yuv_to_rgb_matrix(kr: float, kb: float, full: bool, bits: int = 8) -> Array:
    """float64 (3, 4): R, G, B in 0..255 from codes of Y, U, V and 1: the inverse of `rgb_to_yuv_matrix`."""
    forward = rgb_to_yuv_matrix(kr, kb, full, bits)
    inverse = np.linalg.inv(forward[:, :3])
    return np.column_stack((inverse, -inverse @ forward[:, 3]))


def top_code(bits: int) -> int:
    """The highest code of that many bits: 255 or 1023."""
    return (1 << bits) - 1


def small_rgb(planes: tuple[Array, ...], color: Color, width: int, height: int) -> Array:
    """uint8 (height, width, 3) RGB of planes of 8 or 10 bits, reduced by area in YUV first."""
    kr, kb = weights(color, planes[0].shape[0])
    size = (width, height)
    small = [reduce(p, size) for p in planes[:3]]
    yuv = cv2.merge(small)
    if yuv.dtype == np.uint16:
        matrix = yuv_to_rgb_matrix(kr, kb, is_full(color), 10)
        return np.clip(np.rint(cv2.transform(yuv.astype(np.float32), matrix)), 0, 255).astype(np.uint8)
    return np.asarray(cv2.transform(yuv, yuv_to_rgb_matrix(kr, kb, is_full(color))))


def reduce(plane: Array, size: tuple[int, int]) -> Array:
    """A plane at another (width, height): linearly, but by area where it shrinks to less than a half.

    It is halved first as often as that fits: OpenCV has SIMD for halves, and for linear interpolation, but hardly any
    for areas (0.30 ms for 640x360 to 384x224, 0.04 linearly, which looks at the two nearest samples each way)."""
    while (h := plane.shape[0]) >= 2 * size[1] and (w := plane.shape[1]) >= 2 * size[0] and not (h % 2 or w % 2):
        plane = halved(plane)
    if (plane.shape[1], plane.shape[0]) == size:
        return plane
    shrinks = plane.shape[1] >= size[0] and plane.shape[0] >= size[1]
    by_area = shrinks and not at_most_halved(plane.shape, size[::-1])
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA if by_area else cv2.INTER_LINEAR))


def at_most_halved(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether both sides of the latter are at least half of the former's."""
    return all(a <= 2 * b for a, b in zip(shape, size, strict=True))


def rgb_to_planes(rgb: Array, color: Color, *, height: int, bits: int, chroma: tuple[int, int]) -> tuple[Array, ...]:
    """Y, U, V planes of a uint8 (H, W, 3) RGB picture, in the matrix and range of `color`.

    height: lines of the video that the planes are for, which decides what an untagged `color` means.
    Chroma is left-sited where it is subsampled horizontally (as MPEG-2 and H.264 have it)."""
    matrix = rgb_to_yuv_matrix(*weights(color, height), is_full(color), bits)
    if bits == 8 and chroma == (1, 1):  # OpenCV rounds once, without a float picture in between
        return tuple(np.asarray(p) for p in cv2.split(cv2.transform(rgb, matrix)))
    y, u, v = cv2.split(cv2.transform(rgb.astype(np.float32), matrix))
    dtype = np.uint8 if bits == 8 else np.uint16
    return tuple(
        np.clip(np.rint(p), 0, top_code(bits)).astype(dtype) for p in (y, subsample(u, chroma), subsample(v, chroma))
    )


def subsample(plane: Array, chroma: tuple[int, int]) -> Array:
    """A full-resolution plane brought to the chroma grid: [1 2 1] horizontally (left-sited), mean of two rows
    vertically, rounded once. uint8, uint16 or float32; the result is a new array of the same type with
    ceil(H/2), ceil(W/2) where subsampled (the plane itself for 4:4:4)."""
    sx, sy = chroma
    if chroma == (1, 1):
        return plane
    if plane.dtype == np.uint8:
        sums, total = subsample_sums(plane, chroma)
        return np.asarray(cv2.convertScaleAbs(sums, alpha=1 / total))
    out: Array = plane.astype(np.float32)
    if sy == 2:
        if out.shape[0] % 2:
            out = cv2.copyMakeBorder(out, 0, 1, 0, 0, cv2.BORDER_REPLICATE)
        out = (out[0::2] + out[1::2]) * np.float32(0.5)
    if sx == 2:
        kernel = np.array([[0.25, 0.5, 0.25]], np.float32)
        out = cv2.filter2D(out, -1, kernel, borderType=cv2.BORDER_REPLICATE)[:, ::2]
    return np.ascontiguousarray(out) if plane.dtype == np.float32 else np.rint(out).astype(plane.dtype)


def subsample_sums(plane: Array, chroma: tuple[int, int]) -> tuple[Array, int]:
    """(uint16 sums on the chroma grid, total of the weights) of a full-resolution uint8 plane: `subsample`
    without its division. All in integer SIMD: neighbours are the low and high bytes of 16-bit words."""
    sx, sy = chroma
    h, w = plane.shape
    odd = h % 2 if sy == 2 else 0
    if sx == 1:
        rows = cv2.copyMakeBorder(plane, 0, odd, 0, 0, cv2.BORDER_REPLICATE).astype(np.uint16)
        return (rows[0::2] + rows[1::2], 2) if sy == 2 else (rows, 1)
    # Two columns more on the left: the odd neighbour of column 0 is column 0 itself.
    words = cv2.copyMakeBorder(plane, 0, odd, 2, w % 2, cv2.BORDER_REPLICATE).view("<u2")
    even, high = words[::sy] & 255, words[::sy] >> 8
    if sy == 2:
        even += words[1::2] & 255
        high += words[1::2] >> 8
    even <<= 1
    sums = even[:, 1:]
    sums += high[:, :-1]
    sums += high[:, 1:]
    return sums, 4 * sy


def planes_to_rgb(planes: tuple[Array, ...], color: Color) -> Array:
    """uint8 (H, W, 3) RGB at full size. For stills and previews, not for the hot path."""
    h, w = planes[0].shape
    full_size = [planes[0], *(enlarge_chroma(p, w, h) for p in planes[1:3])]
    kr, kb = weights(color, h)
    bits = 10 if planes[0].dtype == np.uint16 else 8
    matrix = yuv_to_rgb_matrix(kr, kb, is_full(color), bits)
    if bits == 8:
        return np.asarray(cv2.transform(cv2.merge(full_size), matrix))
    yuv = cv2.merge([p.astype(np.float32) for p in full_size])
    return np.clip(np.rint(cv2.transform(yuv, matrix)), 0, 255).astype(np.uint8)


def enlarge_chroma(plane: Array, width: int, height: int) -> Array:
    """A chroma plane at luma size, left-sited horizontally, centred vertically."""
    if plane.shape == (height, width):
        return plane
    sx, sy = 2 if plane.shape[1] != width else 1, 2 if plane.shape[0] != height else 1
    # Sample x of the luma grid lies at x / 2 of the left-sited chroma grid, and at (y - 0.5) / 2 vertically.
    m = np.array([[1 / sx, 0, 0], [0, 1 / sy, -0.25 if sy == 2 else 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(plane, m, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def solid(rgb: tuple[int, int, int], color: Color, *, height: int, bits: int) -> tuple[int, int, int]:
    """Codes of Y, U, V of one colour."""
    pixel = np.array([[rgb]], np.uint8)
    y, u, v = rgb_to_planes(pixel, color, height=height, bits=bits, chroma=(1, 1))
    return int(y[0, 0]), int(u[0, 0]), int(v[0, 0])


def tagged(color: Color, height: int) -> Color:
    """The colour with its matrix spelt out: what an untagged picture of that height is taken for."""
    if color.matrix != UNSPECIFIED and color.range != RANGE_UNSPECIFIED:
        return color
    matrix = color.matrix if color.matrix != UNSPECIFIED else (BT709 if height >= 720 else BT470BG)
    return Color(matrix, FULL if is_full(color) else 1, color.primaries, color.transfer)
