"""What the tests of sources share: media to read, and all that comes of it."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np

from rtbg.frame import Frame
from rtbg.protocols import Source
from rtbg.sources import open_source

SIZE = (160, 96)


def drain(source: Source) -> list[Frame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    return frames


def frames_of(path: Path, **part: float) -> list[Frame]:
    source = open_source(path, **part)
    try:
        return drain(source)
    finally:
        source.close()


def write_picture(path: Path, rgb: np.ndarray, **exif: int) -> Path:
    """A still by OpenCV; `exif=6` writes that orientation."""
    bgr = rgb[:, :, ::-1] if rgb.ndim == 3 and rgb.shape[2] == 3 else rgb
    best = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 100], ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101]}.get(path.suffix, [])
    if exif:
        block = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, exif["exif"], 0, 0)
        data = [np.frombuffer(block, np.uint8)]
        _, coded = cv2.imencodeWithMetadata(path.suffix, bgr, [cv2.IMAGE_METADATA_EXIF], data, best)
    else:
        _, coded = cv2.imencode(path.suffix, bgr, best)
    path.write_bytes(coded.tobytes())
    return path
