"""Makes the pictures of README and docs with rtbg itself, from the demo portrait: python docs/make_pictures.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
import cv2
import numpy as np

import rtbg
from rtbg.api import borrowed_engine
from rtbg.color import planes_to_rgb, solid
from rtbg.composite import Compositor
from rtbg.foreground import Foreground
from rtbg.matting import RAW, Matting, Refinement
from rtbg.sources.demo import DemoSource

DOCS = Path(__file__).parent
# Upper left corners of the parts of the picture that `edges` shows.
EDGES = ((320, 130), (690, 60))


def shot(folder: Path, background: str, show: str = "composite", frame: int = 20) -> np.ndarray:
    """uint8 (360, 480, 3) RGB: one picture of the demo after rtbg, the middle of it."""
    target = folder / f"{len(list(folder.iterdir()))}.mkv"
    options = rtbg.Options(show=show, codec="ffv1")
    rtbg.replace_background(DemoSource(seconds=1), target, background=background, options=options)
    with av.open(str(target)) as video:
        picture = list(video.decode(video=0))[frame].to_ndarray(format="rgb24")
    return crop(picture)


def crop(picture: np.ndarray) -> np.ndarray:
    """The part of a 1280x720 picture with the person, at 480x360."""
    return cv2.resize(picture[:, 160:1120], (480, 360), interpolation=cv2.INTER_AREA)


def edges() -> np.ndarray:
    """uint8 RGB: two parts of the demo's edge at 4x, each as the camera gave it, with the network's matte enlarged
    and put over a new background, and with all of rtbg's steps."""
    source = DemoSource(seconds=1)
    frames = [f for f in (source.read() for _ in range(21)) if f is not None]
    info, last = source.info, frames[-1]
    dusk = solid((25, 45, 95), last.color, height=info.height, bits=8)
    behind = tuple(np.full(p.shape, c, p.dtype) for p, c in zip(last.planes, dusk, strict=True))
    pictures = [planes_to_rgb(last.planes, last.color)]
    with borrowed_engine(rtbg.Options().model, "auto", "auto", 1) as engine:
        for refinement, foreground in ((RAW, None), (Refinement(), Foreground())):
            matting, compositor = Matting(engine, info, refinement), Compositor(foreground=foreground)
            frame, alpha = [pair for f in frames for pair in matting.push(f)][-1]
            pictures.append(planes_to_rgb(compositor(frame, alpha, behind).planes, last.color))
    rows = []
    for x, y in EDGES:
        parts = [p[y : y + 80, x : x + 120] for p in pictures]
        rows.append(np.hstack([cv2.resize(p, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC) for p in parts]))
    return np.vstack(rows)


def main() -> None:
    """Writes docs/demo.jpg: as it is, the matte, and four backgrounds; and docs/edge.jpg, see `edges`."""
    source = DemoSource(seconds=1)
    frames = [source.read() for _ in range(21)]
    assert frames[20] is not None
    plain = crop(planes_to_rgb(frames[20].planes, frames[20].color))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shots = [
            plain,
            shot(folder, "black", "matte"),
            *(shot(folder, b) for b in ("blur:0.8", "ocean", "dusk", "#00b140")),
        ]
    sheet = np.vstack([np.hstack(shots[:3]), np.hstack(shots[3:])])
    for name, picture in (("demo.jpg", sheet), ("edge.jpg", edges())):
        cv2.imwrite(str(DOCS / name), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
