"""What happens to a training picture after it was taken or composited: things behind people, before them and on their
heads, light, the lens, the camera's own faults.

Used by `training.data`. Every function takes a generator, RGB as uint8 (H, W, 3) and the matte as uint8 (H, W), and
gives arrays of the same shapes, those it was given where it does nothing, and never writes into these. Memory bound: a
few times the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

# Gives RGB of any texture, uint8 (height, width, 3): a scene with nobody in it.
Texture = Callable[[], U8]

# Gaussian noise drawn once; a sample takes a random stretch of it, which costs a twentieth of drawing it anew.
NOISE_SIGMA = 4096.0
NOISE = (np.random.default_rng(7).standard_normal(2_000_000, dtype=np.float32) * NOISE_SIGMA).astype(np.int16)

KEPT = 0.5  # of what is seen of the people, all together, at least: what hides more of them is left away


# -- things --


def behind(rng: np.random.Generator, rgb: U8, alpha: U8, texture: Texture) -> U8:
    """The picture with something behind the people, at their place and of their size, or at the frame's side: of
    one colour or of any texture, as a chair's back, a car seat, a cushion or a coat on the wall might be."""
    height, width = alpha.shape
    x, y, w, h = extent(alpha)
    half = 0.5 * w * np.exp(rng.uniform(math.log(0.4), math.log(1.5), 2)) * np.array([1.0, 1.3])
    centre = np.array([x + w * rng.uniform(0.1, 0.9), y + h * rng.uniform(-0.1, 0.5) + half[1]])
    if rng.random() < 0.35:  # a chair that the frame cuts off, and nobody in it
        half = np.array([width, height]) * rng.uniform(0.08, 0.3, 2)
        side = rng.choice((-1, 1))
        across = width * (side + 1) / 2 + side * rng.uniform(-0.7, 0.7) * half[0]
        centre = np.array([across, height * rng.uniform(0.5, 1.05)])
    shape = blob(rng, alpha.shape, centre, half, rng.normal(0, 0.12))
    shape = np.asarray(cv2.multiply(shape, cv2.bitwise_not(alpha), scale=1 / 255), np.uint8)
    thing = texture() if rng.random() < 0.5 else plain(rng, alpha.shape)
    return blend(thing, rgb, shape)


def before(rng: np.random.Generator, rgb: U8, alpha: U8, texture: Texture) -> tuple[U8, U8]:
    """The picture with something before the people, which the matte leaves out as the labels of most photographs do:
    a mug, a phone or a book that is held, or a bar from the frame's border on, as a microphone's arm or a desk's edge.
    What lies on them with nothing else around it is worn, a badge or a pocket, and stays in the matte: a hole there
    would be seen. As it was where nobody is there, or where too little of the people would be left."""
    height, width = alpha.shape
    x, y, w, h = extent(alpha)
    if rng.random() < 0.3:
        start = np.array([rng.choice((-0.1, 1.1)) * width, rng.uniform(0.2, 1.1) * height])
        goal = np.array([x + w * rng.uniform(0.2, 0.8), y + h * rng.uniform(0.3, 0.9)])
        half = np.array([np.hypot(*(goal - start)) / 2, width * rng.uniform(0.006, 0.03)])
        turn = math.atan2(*(goal - start)[::-1])
        shape = blob(rng, alpha.shape, (start + goal) / 2, half, turn)
    else:
        half = 0.5 * min(w, h) * np.exp(rng.uniform(math.log(0.1), math.log(0.45), 2))
        centre = np.array([x, y]) + np.array([w, h]) * rng.uniform((0.0, 0.25), (1.0, 0.95))
        shape = blob(rng, alpha.shape, centre, half, rng.normal(0, 0.4))
    left = np.asarray(cv2.multiply(alpha, cv2.bitwise_not(shape), scale=1 / 255), np.uint8)
    if left.sum(dtype=np.int64) <= KEPT * alpha.sum(dtype=np.int64):
        return rgb, alpha
    thing = texture() if rng.random() < 0.5 else plain(rng, alpha.shape)
    around = cv2.dilate(shape, np.ones((5, 5), np.uint8))
    worn = not ((around > 0) & (alpha < 250)).any()
    return blend(thing, rgb, shape), alpha if worn else left


def headphones(rng: np.random.Generator, rgb: U8, alpha: U8) -> tuple[U8, U8]:
    """The picture of one person, seen from near, with a headset on: a band over the head, a cup at each side of it,
    all of it part of the person. As it was where no head is found."""
    head = find_head(alpha)
    if head is None:
        return rgb, alpha
    top, ear, left, right = head
    wide = right - left
    shape = np.zeros_like(alpha)
    band = max(1, round(wide * rng.uniform(0.05, 0.12)))
    axes = (round(wide / 2 + band * rng.uniform(-0.2, 0.6)), round((ear - top) + band * rng.uniform(-0.1, 0.8)))
    cv2.ellipse(shape, (round((left + right) / 2), round(ear)), axes, 0, 180, 360, 255, band)
    cup = (max(1, round(wide * rng.uniform(0.07, 0.15))), max(1, round(wide * rng.uniform(0.14, 0.25))))
    lean = rng.uniform(-10, 10)
    for x, turn in ((left, lean), (right, -lean)):
        cv2.ellipse(shape, (round(x), round(ear)), cup, turn, 0, 360, 255, -1)
    shape = np.asarray(cv2.GaussianBlur(shape, (0, 0), rng.uniform(0.4, 0.9)), np.uint8)
    return blend(plain(rng, alpha.shape), rgb, shape), np.maximum(alpha, shape)


def find_head(alpha: U8) -> tuple[float, float, float, float] | None:
    """(top, ears' row, left, right) of the head of a person seen from near, in pixels: the row as far below the top as
    three fifths of the width there, as heads are. None where nothing like it is seen whole."""
    _, y, _, h = extent(alpha)
    height, width = alpha.shape
    if y < 2 or h < height / 4:
        return None
    rows = alpha[y : y + h] > 127
    column = int(np.median(np.flatnonzero(rows[0])))
    left = right = column
    for depth in range(h):
        row = rows[depth]
        if not row[left : right + 1].any():
            return None
        inside = left + int(np.flatnonzero(row[left : right + 1])[0])
        outside = np.flatnonzero(~row)
        before_it, after_it = outside[outside < inside], outside[outside > inside]
        left = int(before_it[-1]) + 1 if before_it.size else 0
        right = int(after_it[0]) - 1 if after_it.size else width - 1
        if left == 0 or right == width - 1:
            return None
        if depth >= 0.6 * (right - left) and depth > 8:
            return float(y), float(y + depth), float(left), float(right)
    return None


def extent(alpha: U8) -> tuple[int, int, int, int]:
    """(x, y, width, height) of the people in a matte; the whole frame where there is nobody."""
    x, y, w, h = cv2.boundingRect((alpha > 127).astype(np.uint8))
    return (x, y, w, h) if w else (0, 0, alpha.shape[1], alpha.shape[0])


def blob(
    rng: np.random.Generator, shape: tuple[int, ...], centre: npt.ArrayLike, half: npt.ArrayLike, turn: float
) -> U8:
    """uint8 (H, W), a soft-edged shape between a box and an ellipse; `half` its half width and height, pixels, turned
    by `turn`, radians."""
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    ray = np.stack((np.cos(t), np.sin(t)))
    outline = np.sign(ray) * np.abs(ray) ** rng.uniform(0.25, 1.0)
    c, s = math.cos(turn), math.sin(turn)
    points = (np.array([[c, -s], [s, c]]) @ (outline * np.asarray(half)[:, None])).T + np.asarray(centre)
    filled = cv2.fillPoly(np.zeros(shape[:2], np.uint8), [points.round().astype(np.int32)], 255)
    return np.asarray(cv2.GaussianBlur(filled, (0, 0), rng.uniform(0.5, 1.5)), np.uint8)


def plain(rng: np.random.Generator, shape: tuple[int, ...]) -> U8:
    """One colour, dark more often than not, lit from above or below."""
    height, width = shape[:2]
    tone = rng.uniform(0, 255, 3) * rng.uniform(0.1, 1) * 0.3 + rng.uniform(0, 1) ** 2 * 178
    light = np.linspace(rng.uniform(0.7, 1.3), rng.uniform(0.7, 1.3), height)[:, None, None]
    return np.broadcast_to(np.minimum(tone * light, 255), (height, width, 3)).astype(np.uint8)


def blend(over: U8, under: U8, share: U8) -> U8:
    """`over` where `share` is 255, `under` where it is 0."""
    weight = share.astype(np.float32) / 255
    return np.asarray(cv2.blendLinear(over, under, weight, 1 - weight), np.uint8)


# -- light and lens --


def backlight(rng: np.random.Generator, rgb: U8, alpha: U8) -> U8:
    """The people before a window: they dark, what is behind them bright and flowing over their edges."""
    a = alpha.astype(np.float32)[..., None] / 255
    lit = rgb.astype(np.float32) * (a * rng.uniform(0.25, 0.8) + (1 - a) * rng.uniform(1.2, 2.5))
    lit += (1 - a) * rng.uniform(0, 90)
    reach = alpha.shape[1] * rng.uniform(0.01, 0.06)
    glow = cv2.GaussianBlur(np.minimum(lit, 255), (0, 0), reach, borderType=cv2.BORDER_REPLICATE)
    k = rng.uniform(0.05, 0.35)
    return np.asarray(np.clip(lit * (1 - k) + glow * k, 0, 255), np.uint8)


def dusk(rng: np.random.Generator, rgb: U8, alpha: U8) -> U8:
    """Dark clothes before a dark wall: what is behind the people nearly black, and they too below the head, or, where
    no head is found (`find_head`), from somewhere in the upper half of what is seen of them on."""
    a = alpha.astype(np.float32) / 255
    _, y, _, h = extent(alpha)
    head = find_head(alpha)
    start = y + h * rng.uniform(0.2, 0.5) if head is None else head[1] + (head[1] - head[0]) * rng.uniform(0.9, 1.3)
    rows = (np.arange(len(alpha), dtype=np.float32) - start) / max(4.0, 0.12 * h)
    clothes = 1 - np.clip(rows, 0, 1) * (1 - rng.uniform(0.08, 0.4))
    mean = float(np.dot(cv2.mean(rgb, mask=(alpha < 128).astype(np.uint8))[:3], (0.299, 0.587, 0.114))) + 1
    wall = min(1.0, rng.uniform(6, 40) / mean)
    share = a * clothes[:, None] + (1 - a) * wall
    return np.asarray(rgb * share[..., None] + 0.5, np.uint8)


def wide_angle(rng: np.random.Generator, rgb: U8, alpha: U8) -> tuple[U8, U8]:
    """Seen through a lens that bends straight lines: outwards (barrel) up to a webcam's worst, or a little inwards
    (first term of Brown 1966's model)."""
    height, width = alpha.shape
    bend = rng.uniform(-0.08, 0.25)
    half = max(width, height) / 2
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / half
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / half
    r2 = x[None] ** 2 + y[:, None] ** 2
    most = float(r2.max())
    k = (1 + bend * r2) / (1 + max(0.0, bend) * most)  # the corners stay inside the picture
    map_x = (x[None] * k * half + (width - 1) / 2).astype(np.float32)
    map_y = (y[:, None] * k * half + (height - 1) / 2).astype(np.float32)
    both = cv2.merge((*cv2.split(rgb), alpha))
    bent = cv2.remap(both, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(bent[..., :3]), np.ascontiguousarray(bent[..., 3])


# -- the camera --


def degrade(rng: np.random.Generator, rgb: U8) -> U8:
    """What a cheap camera does to a picture: light, colour, blur, noise, compression."""
    x = np.arange(256, dtype=np.float32) / 255
    gain = np.exp(rng.normal(0, 0.15)) * np.exp(rng.normal(0, 0.07, 3))
    gamma = math.exp(rng.normal(0, 0.2))
    if rng.random() < 0.12:  # low light
        gain, gamma = gain * rng.uniform(0.25, 0.6), gamma * rng.uniform(1.0, 1.3)
    contrast, pivot = math.exp(rng.normal(0, 0.15)), rng.uniform(0.3, 0.6)
    curve = (x[:, None] ** gamma * gain - pivot) * contrast + pivot
    table = (np.clip(curve, 0, 1) * 255).round().astype(np.uint8).reshape(1, 256, 3)
    rgb = np.asarray(cv2.LUT(rgb, table), dtype=np.uint8)
    if rng.random() < 0.3:  # saturation, down to grey
        k = rng.uniform(0.0, 1.4)
        matrix = k * np.eye(3) + (1 - k) * np.array([[0.299, 0.587, 0.114]])
        rgb = np.asarray(cv2.transform(rgb, matrix), dtype=np.uint8)
    if rng.random() < 0.2:
        if rng.random() < 0.5:
            rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 1.5)), dtype=np.uint8)
        else:  # motion blur along one axis
            k = int(rng.integers(2, 6))
            rgb = np.asarray(cv2.blur(rgb, (k, 1) if rng.random() < 0.5 else (1, k)), dtype=np.uint8)
    if rng.random() < 0.35:
        start = int(rng.integers(len(NOISE) - rgb.size))
        noise = NOISE[start : start + rgb.size].reshape(rgb.shape)
        strength = rng.uniform(1, 12) / NOISE_SIGMA
        rgb = np.asarray(cv2.addWeighted(rgb.astype(np.int16), 1, noise, strength, 0, dtype=cv2.CV_8U), np.uint8)
    if rng.random() < 0.25:
        quality = int(rng.integers(25, 90))
        ok, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if ok:
            rgb = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return rgb
