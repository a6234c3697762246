"""Videos with an exact matte, made from cut-outs with true alpha; and real clips with a mask for each picture.

A cut-out is moved over a background that moves by itself, blended with its true alpha, given sensor noise and sent
through H.264; what the mattings see is the decoded picture. Used by `benchmarks.quality_video`, `past` and `quality`.
Memory bound: the truth of all pictures of a scene (9 MB each at 1280x720) and its encoded video.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from rtbg.color import rgb_to_planes
from rtbg.frame import BT709, LIMITED, Array, Color, Frame

SIZE = (1280, 720)
RATE = 30
COLOR = Color(BT709, LIMITED, 1, 1)
# Parts of a scene, as fractions of its length: still, smooth motion, fast moves, camera shake.
PARTS = (("still", 0.34), ("smooth", 0.3), ("fast", 0.18), ("shake", 0.18))
NOISE = 3.5  # standard deviation of the sensor noise, codes of 255
CODEC = {"preset": "veryfast", "tune": "zerolatency", "crf": "20"}


@dataclass(frozen=True)
class Picture:
    """One picture of a scene.

    frame: what the camera gives. alpha: float32 (H, W), the truth. person: uint8 RGB (H, W, 3), the true colours
    of the person, defined everywhere near it; room: uint8 RGB, what is behind (both None for real clips). part:
    "still", "smooth", "fast" or "shake"; real clips: "real". where: bool (H, W), where the truth counts (None:
    everywhere).
    """

    frame: Frame
    alpha: Array
    person: Array | None
    part: str
    where: Array | None = None
    room: Array | None = None


def cut_out(image: Path, mask: Path) -> tuple[Array, Array]:
    """(float32 RGB, float32 alpha) of a pair; the colours are those of the person alone, carried on outwards
    (blur fusion at full precision; Forte 2021)."""
    rgb = _read(image).astype(np.float32)
    alpha = _read(mask, grey=True).astype(np.float32) / np.float32(255)
    a = alpha[..., None]
    front: Array = rgb
    back: Array = rgb
    for side in (91, 31, 7):
        wf, wb = cv2.blur(alpha, (side, side))[..., None], cv2.blur(1 - alpha, (side, side))[..., None]
        mean_f = cv2.blur(front * a, (side, side)) / np.maximum(wf, 1e-4)
        mean_b = cv2.blur(back * (1 - a), (side, side)) / np.maximum(wb, 1e-4)
        mean_f, mean_b = np.where(wf > 1e-4, mean_f, front), np.where(wb > 1e-4, mean_b, back)
        front = np.clip(mean_f + a * (rgb - a * mean_f - (1 - a) * mean_b), 0, 255)
        back = mean_b
    return front.astype(np.float32), alpha


def animated(data: Path, index: int, pictures: int, size: tuple[int, int] = SIZE) -> Iterator[Picture]:
    """Scene number `index` (one for each pair of alpha/val), `pictures` long. Deterministic."""
    images = sorted((data / "alpha" / "val" / "images").iterdir())
    masks = sorted((data / "alpha" / "val" / "masks").iterdir())
    rooms = sorted((data / "backgrounds").glob("*.webp"))
    rng = np.random.default_rng(1000 + index)
    person, alpha = cut_out(images[index], masks[index])
    still = _read(rooms[int(rng.integers(len(rooms)))]).astype(np.float32)
    moves = list(_moves(rng, pictures))
    codec, truths = _Codec(size), []
    for part, (x, y, turn, zoom), (bx, by, bzoom) in moves:
        pose = _pose(alpha.shape, size, x, y, turn, zoom)
        a = cv2.warpAffine(alpha, pose, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        np.clip(a, 0, 1, out=a)
        colours = cv2.warpAffine(person, pose, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        behind = _behind(still, size, bx, by, bzoom)
        rgb = behind + (colours - behind) * a[..., None]
        rgb += rng.standard_normal(rgb.shape, np.float32) * np.float32(NOISE)
        own, back = (np.clip(np.rint(c), 0, 255).astype(np.uint8) for c in (colours, behind))
        truths.append((a, own, back, part))
        codec.write(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))
    for frame, (a, own, back, part) in zip(codec.read(), truths, strict=True):
        yield Picture(frame, a, own, part, room=back)


def real(data: Path, name: str, pictures: int, margin: float = 0.08) -> Iterator[Picture]:
    """A clip of video/val at its own size, scored inside a margin (of the diagonal) around its mask: people
    further away are not labelled."""
    folder = data / "video" / "val" / name
    for k, image in enumerate(sorted((folder / "images").iterdir())[:pictures]):
        rgb = _read(image)
        mask = _read(folder / "masks" / f"{image.stem}.png", grey=True)
        radius = round(margin * math.hypot(*mask.shape))
        near = cv2.boxFilter(mask, cv2.CV_32F, (2 * radius + 1, 2 * radius + 1)) > 0
        planes = rgb_to_planes(rgb, COLOR, height=rgb.shape[0], bits=8, chroma=(2, 2))
        frame = Frame(planes, k, Fraction(1, 24), COLOR)
        yield Picture(frame, mask.astype(np.float32) / 255, None, "real", near)


def _read(path: Path, *, grey: bool = False) -> Array:
    """uint8 RGB (H, W, 3), or (H, W)."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f"no picture can be read from {path}")
    return np.asarray(image) if grey else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _moves(rng: np.random.Generator, pictures: int) -> Iterator[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    """(part, the person's x, y, turn, zoom; the background's x, y, zoom) of each picture; all 1 = picture width,
    radians, factors."""
    counts = [round(share * pictures) for _, share in PARTS]
    counts[0] += pictures - sum(counts)
    sway, phase = rng.uniform(0.03, 0.06), rng.uniform(0.3, 0.7)
    direction = rng.choice((-1, 1))
    x, back = 0.0, 0.0
    for (part, _), count in zip(PARTS, counts, strict=True):
        for k in range(count):
            t = k / RATE
            y = turn = bx = by = 0.0
            zoom = 1.0
            if part == "smooth":
                angle = 2 * math.pi * phase * t
                x = sway * math.sin(angle)
                y, turn, zoom = 0.01 * (1 - math.cos(angle)), 0.05 * math.sin(angle), 1 + 0.04 * math.sin(angle)
                back = 0.02 * math.sin(angle / 2)
            elif part == "fast":  # 4 pictures one way, 4 pictures back: about 50 pixels a picture at 720p
                step = 0.04 if k % 8 < 4 else -0.04
                x += direction * step
            elif part == "shake":
                shake = rng.normal(0, 0.003, 2)
                x, y = x * 0.9 + shake[0], shake[1]
                bx, by = float(shake[0]), float(shake[1])
            yield part, (x, y, turn, zoom), (back + bx, by, 1.0)


def _pose(shape: tuple[int, ...], size: tuple[int, int], x: float, y: float, turn: float, zoom: float) -> Array:
    """The affine map of a cut-out that stands on the lower edge, a little wider than it is shown."""
    h, w = shape
    scale = zoom * 1.06 * size[1] / h
    c, s = scale * math.cos(turn), scale * math.sin(turn)
    # The middle of the cut-out's lower edge comes to lie below the middle of the picture's.
    px, py = size[0] * (0.5 + x), size[1] * 1.03 + size[0] * y
    return np.array([[c, -s, px - c * w / 2 + s * h], [s, c, py - s * w / 2 - c * h]])


def _behind(room: Array, size: tuple[int, int], x: float, y: float, zoom: float) -> Array:
    h, w = room.shape[:2]
    scale = zoom * 1.15 * max(size[0] / w, size[1] / h)
    m = np.array(
        [[scale, 0, size[0] * (0.5 + x) - scale * w / 2], [0, scale, size[1] / 2 + size[0] * y - scale * h / 2]]
    )
    return np.asarray(cv2.warpAffine(room, m, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


class _Codec:
    """H.264 in memory: pictures in, the decoded frames out."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._file = io.BytesIO()
        self._out = av.open(self._file, "w", format="matroska")
        self._stream = self._out.add_stream("libx264", rate=RATE, options={**CODEC})
        self._stream.width, self._stream.height, self._stream.pix_fmt = *size, "yuv420p"
        self._stream.thread_count = 1
        self._size, self._count = size, 0

    def write(self, rgb: Array) -> None:
        planes = rgb_to_planes(rgb, COLOR, height=self._size[1], bits=8, chroma=(2, 2))
        flat = np.concatenate([p.ravel() for p in planes]).reshape(-1, self._size[0])
        picture = av.VideoFrame.from_ndarray(flat, format="yuv420p")
        picture.pts, picture.time_base = self._count, Fraction(1, RATE)
        self._count += 1
        self._out.mux(self._stream.encode(picture))

    def read(self) -> Iterator[Frame]:
        self._out.mux(self._stream.encode(None))
        self._out.close()
        self._file.seek(0)
        w, h = self._size
        with av.open(self._file, "r") as source:
            for k, picture in enumerate(source.decode(video=0)):
                flat = picture.to_ndarray(format="yuv420p").reshape(-1)
                y, u, v = np.split(flat, [w * h, w * h + w * h // 4])
                small = (h // 2, w // 2)
                yield Frame((y.reshape(h, w), u.reshape(small), v.reshape(small)), k, Fraction(1, RATE), COLOR)
