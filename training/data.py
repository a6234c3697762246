"""Training samples: photographs and masks made into varied (picture, past matte, truth) triples.

Used by `training.train`. `load_people` and `load_backgrounds` decode everything into memory once (about 3 GB for the
9,000 pictures of the data set, shared copy-on-write between the loader's workers); `SampleMaker.batch` then makes
batches without touching the disk.

What a sample is, by share:
- a photograph as it is, zoomed in or out; outside its border the picture goes on mirrored, so a zoom out
  shows several people and has no hard cut;
- one to three people, or a crowd of small ones, cut out and composited, with soft edges and a colour pulled
  towards the scene, over another background;
- a background with nobody in it (of all scenes half are pictures of their own, half what is beside the people of
  another);
and in some, something that is not a person stands behind the people or before them, or they wear a headset, the light
is against them or nearly gone, the lens bends (`training.effects`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset

from training import effects
from training.errors import TrainingError
from training.files import pairs, read_rgba
from training.split import held_out, pictures

U8 = npt.NDArray[np.uint8]

# How often a picture of each group is drawn, relative to its number. `coc` masks are coarse polygons; `ccp`
# leaves bystanders unlabelled and `cel` hands; the few true-alpha portraits (`ais`) are worth repeating, and so
# are selfies (`pic`), the nearest to what a webcam sees.
GROUP_WEIGHT = {"sup": 1.0, "pic": 3.5, "ccp": 0.6, "cel": 0.4, "coc": 0.0, "ais": 30.0}

NEAR = ("pic", "cel", "ais")  # one person each, seen from near
FAR = (0.15, 0.5)  # of the usual sizes: people in a crowd, or down the street

# The blur, in pixels of the pictures as they are kept, that stands for the soft edge which a binary mask does not have:
# on true-alpha portraits it takes the mask's mean error from 5.1e-3 to 2.4e-3.
EDGE = 0.9

# Pictures beside whose labelled people somebody is seen who has no label: found by looking at the 258 parts of
# `empty_parts` in which the network of run 12 saw anybody. Things that only look like people stayed.
# fmt: off
UNLABELLED = frozenset(
    f"sup{number:05}"
    for number in (
        59, 111, 126, 198, 282, 295, 349, 370, 415, 447, 489, 501, 545, 570, 593, 624, 669, 686, 803, 824, 867,
        1139, 1140, 1168, 1191, 1372, 1416, 1446, 1463, 1870, 1957, 2163, 2226, 2242, 2243, 2301, 2337, 2427,
        2595, 2619, 2665, 2762, 2766, 2903, 2948, 2961, 2990, 3032, 3186, 3448, 3519, 3887, 3948, 3990, 3996,
        3999, 4017, 4051, 4069, 4104, 4177, 4209, 4275, 4378, 4382, 4404, 4444, 4563, 4579, 4624, 4720, 4797,
        4803, 4849, 4855, 4923, 4946,
    )
)
# fmt: on


@dataclass(frozen=True)
class Picture:
    """One photograph: `levels[0]` is uint8 (H, W, 4) RGB and alpha, `levels[1]` the same at half size;
    `cut` says where the frame cuts the person off: left, top, right, bottom; `soft` whether alpha is a matte
    (true or refined) and not a mask."""

    name: str
    levels: tuple[U8, U8]
    cut: tuple[bool, bool, bool, bool]
    soft: bool = False


def _picture(name: str, rgba: U8, soft: bool = False, long_side: int = 352) -> Picture:
    h, w = rgba.shape[:2]
    if max(h, w) > long_side:
        k = long_side / max(h, w)
        rgba = np.asarray(cv2.resize(rgba, (round(w * k), round(h * k)), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        h, w = rgba.shape[:2]
    if not soft and rgba[..., 3].any():
        rgba[..., 3] = cv2.GaussianBlur(rgba[..., 3], (0, 0), EDGE)
    half = cv2.resize(rgba, (max(1, w // 2), max(1, h // 2)), interpolation=cv2.INTER_AREA)
    alpha = rgba[..., 3] > 127
    left, top, right, bottom = (bool(e.mean() > 0.02) for e in (alpha[:, 0], alpha[0], alpha[:, -1], alpha[-1]))
    return Picture(name, (rgba, np.asarray(half, dtype=np.uint8)), (left, top, right, bottom), soft)


def load_people(data: Path, masks: Path | None = None) -> list[Picture]:
    """Every training picture with a person, decoded; mattes of `masks` (what `training.refine` writes) in place of
    the masks of the same name. Raises TrainingError where there are no pictures, or `masks` holds none of them."""
    found = pairs(data / "person" / "train") + pairs(data / "alpha" / "train")
    keep = [(i, m) for i, m in found if GROUP_WEIGHT.get(i.stem[:3], 1.0) > 0]
    if not keep:
        person = data / "person" / "train"
        raise TrainingError(f"no pictures to learn from in {person / 'images'}, their masks in {person / 'masks'}")
    mattes = {p.stem: p for p in masks.glob("*.png")} if masks else {}
    if masks and not mattes.keys() & {i.stem for i, _ in keep}:
        raise TrainingError(f"no mattes of these pictures in {masks}: --masks names what training.refine wrote")
    true = data / "alpha" / "train" / "masks"
    return [
        _picture(i.stem, read_rgba(i, mattes.get(i.stem, m)), soft=i.stem in mattes or m.parent == true)
        for i, m in keep
    ]


def load_backgrounds(data: Path, held: bool = False) -> list[Picture]:
    """Every picture without people that is not held out for testing (held: that is), decoded; alpha is zero. Raises
    TrainingError where there is none."""
    kept = [p for p in pictures(data / "backgrounds") if held_out(p.stem) == held]
    if not kept:
        which = "held out, as a tenth is by its name" if held else "to learn from: add some with nobody in them"
        raise TrainingError(f"no backgrounds in {data / 'backgrounds'} that are {which}")
    return [_picture(p.stem, read_rgba(p, None)) for p in kept]


def load_pictures_of(data: Path, part: str) -> list[Picture]:
    """Every picture of person/PART and alpha/PART ("val", for testing), decoded."""
    true = data / "alpha" / part
    return [
        _picture(i.stem, read_rgba(i, m), soft=folder == true)
        for folder in (data / "person" / part, true)
        for i, m in pairs(folder)
    ]


def empty_parts(people: list[Picture]) -> list[Picture]:
    """Of each picture of `sup` but the `UNLABELLED` ones, the largest part beside, above or below its people, where
    that is worth showing: backgrounds as people really stand before them. Views of its pixels, no copies."""
    found = []
    for picture in people:
        full = picture.levels[0]
        rows, columns = (np.flatnonzero(full[..., 3].any(axis=axis)) for axis in (1, 0))
        if picture.name[:3] != "sup" or picture.name in UNLABELLED or not rows.size:
            continue
        h, w = full.shape[:2]
        top, bottom, left, right = rows[0] // 2, -(-rows[-1] // 2) + 1, columns[0] // 2, -(-columns[-1] // 2) + 1
        parts = [(0, 0, h // 2, left), (0, right, h // 2, w // 2), (0, 0, top, w // 2), (bottom, 0, h // 2, w // 2)]
        y, x, y1, x1 = max(parts, key=lambda p: max(0, p[2] - p[0]) * max(0, p[3] - p[1]))
        if min(y1 - y, x1 - x) >= 48 and 4 * (y1 - y) * (x1 - x) >= 0.2 * h * w:
            half = picture.levels[1][y:y1, x:x1]
            if not half[..., 3].any():
                found.append(Picture(picture.name, (full[2 * y : 2 * y1, 2 * x : 2 * x1], half), (False,) * 4))
    return found


@dataclass(frozen=True)
class Augment:
    """Shares and ranges of the augmentation; each is described where it is used."""

    composite: float = 0.4
    crowd: float = 0.15  # of the composites
    empty: float = 0.1
    parts: float = 0.5  # of the scenes: what `empty_parts` finds
    behind: float = 0.3
    before: float = 0.12
    headphones: float = 0.3  # where a whole head is found: in one of six pictures of `NEAR`
    backlight: float = 0.06
    dusk: float = 0.05
    wide_angle: float = 0.08
    zoom: tuple[float, float] = (0.55, 1.7)
    stretch: float = 0.15
    turn: float = 10.0
    past_none: float = 0.4
    past_wrong: float = 0.3


# For the last stage of a run that has had others before, or to finish trained weights: nearer to photographs as they
# are.
CALM = Augment(composite=0.25, behind=0.15, before=0.06, headphones=0.15, zoom=(0.7, 1.5), turn=6.0)


class SampleMaker:
    """Makes batches from decoded pictures. Deterministic for a given generator."""

    def __init__(self, people: list[Picture], scenes: list[Picture], augment: Augment | None = None) -> None:
        self.people = people
        self.scenes = scenes
        self.parts = empty_parts(people)
        self.augment = augment or Augment()
        weight = np.array([GROUP_WEIGHT.get(p.name[:3], 1.0) for p in people])
        self.cumulative = np.cumsum(weight / weight.sum())
        small = weight * np.array([p.name[:3] not in NEAR and whole(p.cut) for p in people])
        self.crowd = np.cumsum(small / small.sum()) if small.any() else self.cumulative

    def batch(self, rng: np.random.Generator, count: int, width: int, height: int) -> U8:
        """uint8 (count, 5, height, width): RGB, past matte, true matte."""
        out = np.empty((count, 5, height, width), np.uint8)
        for i in range(count):
            rgb, out[i, 4] = self.sample(rng, width, height)
            cv2.split(rgb, list(out[i, :3]))
        for i in range(count):
            out[i, 3] = self._past(rng, out[i, 4], out[(i + 1) % count, 4])
        return out

    def sample(self, rng: np.random.Generator, width: int, height: int) -> tuple[U8, U8]:
        """One picture, uint8 (height, width, 3) RGB, and its matte (height, width)."""
        a = self.augment
        kind = rng.random()
        if kind < a.empty:
            rgb, alpha = split(self._warp(rng, self._scene(rng), width, height, cv2.BORDER_REFLECT_101))
        elif kind < a.empty + a.composite:
            rgb, alpha = self._composite(rng, width, height)
        else:
            person = self._person(rng)
            rgb, alpha = split(self._warp(rng, person, width, height, cv2.BORDER_REFLECT_101))
            if person.name[:3] in NEAR and rng.random() < a.headphones:
                rgb, alpha = effects.headphones(rng, rgb, alpha)

        def texture() -> U8:
            return split(self._warp(rng, self._scene(rng), width, height, cv2.BORDER_REFLECT_101))[0]

        if rng.random() < a.behind:
            rgb = effects.behind(rng, rgb, alpha, texture)
        if kind >= a.empty and rng.random() < a.before:
            rgb, alpha = effects.before(rng, rgb, alpha, texture)
        light = rng.random()
        if light < a.backlight:
            rgb = effects.backlight(rng, rgb, alpha)
        elif light < a.backlight + a.dusk:
            rgb = effects.dusk(rng, rgb, alpha)
        if rng.random() < a.wide_angle:
            rgb, alpha = effects.wide_angle(rng, rgb, alpha)
        return effects.degrade(rng, rgb), alpha

    def _person(self, rng: np.random.Generator, small: bool = False) -> Picture:
        shares = self.crowd if small else self.cumulative
        return self.people[min(int(np.searchsorted(shares, rng.random(), side="right")), len(self.people) - 1)]

    def _scene(self, rng: np.random.Generator) -> Picture:
        share = self.augment.parts if self.parts else 0.0
        scenes = self.parts if share and rng.random() < share else self.scenes
        return scenes[int(rng.integers(len(scenes)))]

    def _warp(
        self, rng: np.random.Generator, picture: Picture, width: int, height: int, border: int, scale: float = 1.0
    ) -> U8:
        """The picture at a random zoom (times `scale`), place, turn and flip in a (height, width, 4) frame."""
        a = self.augment
        full = picture.levels[0]
        fit = max(width / full.shape[1], height / full.shape[0])
        fit = min(fit, 1.6 * min(width / full.shape[1], height / full.shape[0]))
        zoom = scale * fit * math.exp(rng.uniform(math.log(a.zoom[0]), math.log(a.zoom[1])))
        src = full if zoom >= 0.6 else picture.levels[1]
        while zoom * full.shape[1] < 0.5 * src.shape[1] and min(src.shape[:2]) > 8:  # a camera sees no single pixels
            half = src.shape[1] // 2, src.shape[0] // 2
            src = np.asarray(cv2.resize(src, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        sx = zoom * full.shape[1] / src.shape[1] * math.exp(rng.uniform(-a.stretch, a.stretch))
        sy = zoom * full.shape[0] / src.shape[0] * math.exp(rng.uniform(-a.stretch, a.stretch))
        flip = rng.random() < 0.5
        turn = math.radians(rng.normal(0, a.turn / 2)) if rng.random() < 0.5 else 0.0
        frame = np.array([width, height])
        extent = np.array([sx * src.shape[1], sy * src.shape[0]])
        target = frame / 2 + rng.uniform(-1, 1, 2) * (np.abs(frame - extent) / 2 + 0.08 * frame)
        if border == cv2.BORDER_CONSTANT and any(picture.cut):
            left, top, right, bottom = picture.cut
            turn = 0.0
            gx, tx = keep_outside(width, extent[0], target[0], (right, left) if flip else (left, right))
            gy, ty = keep_outside(height, extent[1], target[1], (top, bottom))
            sx, sy, target = sx * gx, sy * gy, np.array([tx, ty])
        c, s = math.cos(turn), math.sin(turn)
        m = np.array([[sx * c, -sy * s], [sx * s, sy * c]])
        if flip:
            m[:, 0] = -m[:, 0]
        centre = np.array([src.shape[1] / 2, src.shape[0] / 2])
        affine = np.hstack((m, (target - m @ centre)[:, None]))
        out = cv2.warpAffine(src, affine, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)
        return np.asarray(out, dtype=np.uint8)

    def _composite(self, rng: np.random.Generator, width: int, height: int) -> tuple[U8, U8]:
        """People over another scene: one to three, or a crowd of small ones. The truth is the union of their softened
        mattes."""
        rgb, _ = split(self._warp(rng, self._scene(rng), width, height, cv2.BORDER_REFLECT_101))
        seen = np.zeros((height, width), np.float32)
        crowd = rng.random() < self.augment.crowd
        for _ in range(int(rng.integers(2, 8) if crowd else rng.choice((1, 1, 1, 2, 3)))):
            person = self._person(rng, small=crowd)
            scale = math.exp(rng.uniform(*np.log(FAR))) if crowd else 1.0
            colour, mask = split(self._warp(rng, person, width, height, cv2.BORDER_CONSTANT, scale))
            if person.name[:3] in NEAR and rng.random() < self.augment.headphones:
                colour, mask = effects.headphones(rng, colour, mask)
            alpha = soften(rng, mask, person.soft)
            if alpha.max() < 0.5:
                continue
            mean_person = np.array(cv2.mean(colour, mask=mask)[:3])
            mean_scene = np.array(cv2.mean(rgb)[:3])
            pull = ((mean_scene + 10) / (mean_person + 10)) ** rng.uniform(0, 0.5)
            table = np.minimum(np.arange(256)[:, None] * np.clip(pull, 0.5, 1.6), 255).astype(np.uint8)
            colour = np.asarray(cv2.LUT(colour, table.reshape(1, 256, 3)), dtype=np.uint8)
            rgb = np.asarray(cv2.blendLinear(colour, rgb, alpha, 1 - alpha), dtype=np.uint8)
            seen = 1 - (1 - seen) * (1 - alpha)
        return rgb, (seen * 255).round().astype(np.uint8)

    def _past(self, rng: np.random.Generator, truth: U8, other: U8) -> U8:
        """A matte as the network might have left it one frame ago: none, another scene's, or the truth
        moved a little and damaged."""
        a = self.augment
        kind = rng.random()
        if kind < a.past_none:
            return np.zeros_like(truth)
        if kind < a.past_none + a.past_wrong:
            return other
        h, w = truth.shape
        move = rng.normal(0, 0.02, (2, 3)) * np.array([[1, 1, w], [1, 1, h]])
        past = cv2.warpAffine(truth, move + np.eye(2, 3), (w, h), borderMode=cv2.BORDER_REPLICATE)
        if rng.random() < 0.5:
            k = 2 * int(rng.integers(1, 4)) + 1
            past = (cv2.erode if rng.random() < 0.5 else cv2.dilate)(past, np.ones((k, k), np.uint8))
        for _ in range(int(rng.integers(0, 4))):
            # Holes and ghosts: a past must be weighed against the picture, never trusted whole.
            centre = (int(rng.integers(w)), int(rng.integers(h)))
            axes = (int(rng.integers(3, w // 4)), int(rng.integers(3, h // 4)))
            cv2.ellipse(past, centre, axes, rng.uniform(0, 180), 0, 360, int(rng.integers(256)), -1)
        if rng.random() < 0.6:
            past = cv2.GaussianBlur(past, (0, 0), rng.uniform(0.5, 5))
        return np.asarray(past, dtype=np.uint8)


def split(rgba: U8) -> tuple[U8, U8]:
    """(RGB, alpha) of an RGBA picture, each contiguous."""
    return np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8), np.asarray(
        cv2.extractChannel(rgba, 3), np.uint8
    )


def whole(cut: tuple[bool, bool, bool, bool]) -> bool:
    """Whether people may be made smaller: what the frame cuts at two opposite sides can only be as large as it."""
    left, top, right, bottom = cut
    return not (left and right) and not (top and bottom)


def keep_outside(frame: float, extent: float, centre: float, cut: tuple[bool, bool]) -> tuple[float, float]:
    """Along one axis, the growth and the new centre of a picture of `extent` pixels such that its low and high
    borders, where `cut` says that they cut a person off, do not fall inside the frame (a straight cut through
    a body there would teach a shape that no camera sees)."""
    low, high = cut
    growth = max(1.0, frame / extent) if low and high else 1.0
    half = extent * growth / 2
    if low:
        centre = min(centre, half)
    if high:
        centre = max(centre, frame - half)
    return growth, centre


def soften(rng: np.random.Generator, mask: U8, soft: bool = False) -> npt.NDArray[np.float32]:
    """A soft matte, float32 (H, W) 0..1, from a mask that was binary (and has been blurred by `EDGE`); its edge drawn
    in a little, so that the cut-out does not carry a rim of its old background. What is a matte already (`soft`) is
    not blurred, which would only spoil its edge, and drawn in by half as much at most: its half-covered pixels carry
    the old background too, but it does not lie outside the person as masks do."""
    sigma = rng.uniform(0.1, 0.95)
    draw = rng.uniform(0.0, 0.15)
    if soft:
        return np.clip((mask.astype(np.float32) / 255 - draw / 2) / 0.925, 0, 1)
    blurred = cv2.GaussianBlur(mask, (0, 0), sigma).astype(np.float32) / 255
    return np.clip((blurred - draw) / 0.85, 0, 1)


class Batches(IterableDataset[torch.Tensor]):
    """Endless batches of one worker; the sizes of the current stage are drawn batch by batch.

    `seed` and the worker's number fix the stream; `stage_sizes` are (width, height) pairs.
    """

    def __init__(self, maker: SampleMaker, batch: int, stage_sizes: list[tuple[int, int]], seed: int) -> None:
        self.maker, self.size, self.stage_sizes, self.seed = maker, batch, stage_sizes, seed

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, info.id if info else 0))
        while True:
            width, height = self.stage_sizes[int(rng.integers(len(self.stage_sizes)))]
            yield torch.from_numpy(self.maker.batch(rng, self.size, width, height))
