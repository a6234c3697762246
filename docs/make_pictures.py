"""Makes the README's picture with rtbg itself, from the demo portrait: python docs/make_pictures.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
import cv2
import numpy as np

import rtbg
from rtbg.sources.demo import DemoSource

DOCS = Path(__file__).parent


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


def main() -> None:
    """Writes docs/demo.jpg: as it is, the matte, and four backgrounds."""
    from rtbg.color import planes_to_rgb

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
    cv2.imwrite(str(DOCS / "demo.jpg"), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
