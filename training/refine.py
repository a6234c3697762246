"""Refines binary masks of the training data to mattes, where the picture supports it.

    python -m training.refine --data PATH --out FOLDER --groups pic,cel

Used before `training.train --masks FOLDER`. Of each pair of person/train whose mask can be trusted to be nearly
right, and whose person can be told from the background by colour along the edge, FOLDER/NAME.png (one channel, the
picture's size) is the matte; of the others there is no file, and training takes the mask. Started again it goes on
where it was: refused pictures are kept in FOLDER/refused.json.

The matte is the closed-form solution (Levin, Lischinski and Weiss, "A Closed-Form Solution to Natural Image
Matting", PAMI 2008) in a narrow band around the mask's edge, with the mask, blurred, as a weak prior, and its
contrast raised: the closed form is smoother than true mattes are. The numbers are pymatting's (`cf_laplacian`, to
1e-8), made with NumPy and SciPy on the band alone: pymatting's first import compiles for a minute of CPU time, a
picture takes a tenth of a second.

Memory: one picture at a time, some 20 MB for a long side of 352. Nothing is random.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from training.errors import make_folder, one_line
from training.files import U8, pairs, read_rgba

F64 = npt.NDArray[np.float64]

BAND = 3.0  # pixels on each side of the mask's edge, at a long side of 352
EPSILON = 1e-4  # of the colours' covariance
PRIOR = 0.1  # weight of the blurred mask against the picture
CONTRAST = 4.0  # ... of the solution, and then
EDGE = 0.7  # pixels: sigma of its blur, at a long side of 352
GROUPS = ("pic", "sup", "ccp", "cel")


@dataclass(frozen=True)
class Rule:
    """What a refined matte must fulfil to be taken; shares are of the band's pixels unless it says otherwise."""

    person: float = 0.01  # least share of the picture that is person, and that is not
    agreement: float = 0.7  # least share that the mask and the matte, cut at 0.5, have on the same side
    leak: float = 0.12  # largest mean alpha in the band's outer rim, and of 1 - alpha in its inner rim
    unsure: float = 0.3  # largest share where the solution is within 0.15 of a half: no edge was found
    near: float = 0.10  # person and background closer than this (of 0..1, in RGB) cannot be told apart ...
    alike: float = 0.35  # ... and that along at most this share of the edge


def trimap(mask: U8, band: float) -> F64:
    """1 inside, 0 outside, 0.5 where the nearest edge of `mask` is within `band` pixels; (H, W)."""
    inside = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((mask <= 127).astype(np.uint8), cv2.DIST_L2, 5)
    known = np.full(mask.shape, 0.5)
    known[inside > band] = 1
    known[outside > band] = 0
    return known


def closed_form(rgb: U8, known: F64, prior: F64, weight: float) -> F64:
    """Alpha 0..1 (H, W) of `rgb` (H, W, 3): `known` where that is 0 or 1, elsewhere what makes alpha a linear
    function of the colours in every 3x3 window, drawn to `prior` with `weight`."""
    from scipy.sparse import coo_matrix, eye
    from scipy.sparse.linalg import splu

    height, width = known.shape
    unknown = np.flatnonzero(known == 0.5)
    near = cv2.dilate((known == 0.5).astype(np.uint8), np.ones((3, 3), np.uint8))
    near[[0, -1]] = 0
    near[:, [0, -1]] = 0
    window = np.flatnonzero(near)[:, None] + (np.arange(-1, 2)[:, None] * width + np.arange(-1, 2)).ravel()
    colour = rgb.reshape(-1, 3)[window] / 255.0
    colour -= colour.mean(1, keepdims=True)
    across = colour.transpose(0, 2, 1)
    inverse = np.linalg.inv((across @ colour + EPSILON * np.eye(3)) / 9)
    laplacian = np.eye(9) - (1 + colour @ inverse @ across) / 9
    number = np.full(height * width, -1, np.int64)
    number[unknown] = np.arange(len(unknown))
    row = np.broadcast_to(number[window][:, :, None], laplacian.shape)
    column = np.broadcast_to(number[window][:, None, :], laplacian.shape)
    value = np.broadcast_to(known.ravel()[window][:, None, :], laplacian.shape)
    inner, rim = (row >= 0) & (column >= 0), (row >= 0) & (column < 0)
    size = len(unknown)
    matrix = coo_matrix((laplacian[inner], (row[inner], column[inner])), shape=(size, size)).tocsc()
    right = weight * prior.ravel()[unknown] - np.bincount(row[rim], (laplacian * value)[rim], minlength=size)
    factors = splu(
        matrix + weight * eye(size, format="csc"),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    alpha = known.copy()
    alpha.ravel()[unknown] = np.clip(factors.solve(right), 0, 1)
    return alpha


def blurred(mask: U8 | F64, sigma: float) -> F64:
    """`mask`, 0..255, blurred, as 0..1."""
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma) / 255.0, dtype=np.float64)


def edge_contrast(rgb: U8, known: F64, edge: npt.NDArray[np.bool_], reach: float) -> F64:
    """At each pixel of `edge`, how far apart (RGB, 0..1) the mean colours of the person and of the background
    are that are known within about `reach` pixels."""
    means = []
    for side in (1.0, 0.0):
        weight = (known == side).astype(np.float64)
        total = cv2.GaussianBlur(weight, (0, 0), reach) + 1e-9
        means.append(cv2.GaussianBlur(rgb / 255.0 * weight[..., None], (0, 0), reach) / total[..., None])
    return np.asarray(np.linalg.norm(means[0] - means[1], axis=2)[edge], dtype=np.float64)


def refine(rgb: U8, mask: U8, rule: Rule | None = None) -> tuple[U8 | None, str]:
    """The matte of `rgb` (H, W, 3) near the binary `mask` (H, W), uint8 like it, and "accepted"; or None and the
    name of the rule that refused it."""
    rule = rule or Rule()
    mask = np.where(mask > 127, 255, 0).astype(np.uint8)
    share = float((mask > 127).mean())
    if not rule.person <= share <= 1 - rule.person:
        return None, "size"
    scale = max(mask.shape) / 352
    known = trimap(mask, BAND * scale)
    band = known == 0.5
    edge = band & (trimap(mask, max(1.0, 1.5 * scale)) == 0.5)
    contrast = edge_contrast(rgb, known, edge, 2 * BAND * scale)
    if (contrast < rule.near).mean() > rule.alike:
        return None, "alike"
    alpha = closed_form(rgb, known, blurred(mask, 2 * scale), PRIOR)
    inside = mask > 127
    if (np.abs(alpha - 0.5) < 0.15)[band].mean() > rule.unsure:
        return None, "unsure"
    if ((alpha > 0.5) == inside)[band].mean() < rule.agreement:
        return None, "agreement"
    alpha = blurred(np.clip((alpha - 0.5) * CONTRAST + 0.5, 0, 1) * 255, EDGE * scale)
    rim = band & (trimap(mask, (BAND - 1) * scale) != 0.5)
    far, deep = alpha[rim & ~inside], 1 - alpha[rim & inside]
    if max((float(x.mean()) for x in (far, deep) if len(x)), default=0.0) > rule.leak:
        return None, "leak"
    return (alpha * 255).round().astype(np.uint8), "accepted"


@one_line("training.refine", "interrupted: the same command goes on where it was")
def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="training.refine", description="Refines binary masks to mattes.")
    parser.add_argument("--data", type=Path, required=True, help="folder with person/train")
    parser.add_argument("--out", type=Path, required=True, help="folder for the mattes")
    parser.add_argument("--groups", default="pic", help=f"of {','.join(GROUPS)} (default: pic)")
    args = parser.parse_args(argv)
    groups = args.groups.split(",")
    if unknown := sorted(set(groups) - set(GROUPS)):
        parser.error(f"no such group: {', '.join(unknown)} (there are {', '.join(GROUPS)})")
    todo = [(i, m) for i, m in pairs(args.data / "person" / "train") if i.stem[:3] in groups]
    if not todo:
        parser.error(f"no pictures of {', '.join(groups)} in {args.data / 'person' / 'train' / 'images'}")
    make_folder(args.out)
    record = args.out / "refused.json"
    refused: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    counts = {g: Counter[str]() for g in groups}
    cv2.setNumThreads(1)
    for done, (image, mask) in enumerate(todo, 1):
        name, target = image.stem, args.out / f"{image.stem}.png"
        why = "accepted" if target.exists() else refused.get(name)
        if why is None:
            try:
                rgba = read_rgba(image, mask)
            except ValueError as error:
                print(f"training.refine: {error}", file=sys.stderr)
                return 1
            matte, why = refine(np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3]))
            if matte is None:
                refused[name] = why
                replace_file(record, json.dumps(refused, indent=0).encode())
            else:
                replace_file(target, cv2.imencode(".png", matte)[1].tobytes())
        counts[name[:3]][why] += 1
        if done % 100 == 0 or done == len(todo):
            print(f"{done} of {len(todo)} pictures", flush=True)
    for group, count in counts.items():
        rest = ", ".join(f"{n} {why}" for why, n in sorted(count.items()) if why != "accepted")
        print(f"{group}: {count['accepted']} of {count.total()} accepted; refused: {rest or 'none'}")
    return 0


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never half."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
