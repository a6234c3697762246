"""The webcam's clip for the test on real devices, its background, and what a reader of the virtual camera must see.

`python clip.py DIR`, on the host, with rtbg and its extra [demo]: the demo's animated portrait, a person in a room
painted magenta, a colour that nothing but this camera shows. The background has two colours, so that a mirrored, cut or
displaced picture is found out. Writes, for `guest/checks.py`:
    webcam.yuyv      one period of raw pictures, SIZE, RATE a second, BT.601 limited, as the fake webcam shows them
    background.png   SIZE
    expected.npz     person, room: bool (H, W), pixels that are so in every picture; low, high: uint8 (H, W, 3) RGB,
                     the person's pixels of all pictures lie between; background: uint8 (H, W, 3)
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

import rtbg
from rtbg.sources.demo import DemoSource

SIZE, RATE = (320, 240), 4
LEFT, RIGHT = (30, 160, 60), (40, 80, 200)
MAGENTA = (255, 0, 255)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures, mattes = zip(*map(in_the_room, portraits()), strict=True)
    (folder / "webcam.yuyv").write_bytes(b"".join(map(yuyv, pictures)))
    width, height = SIZE
    background = np.full((height, width, 3), LEFT, np.uint8)
    background[:, width // 2 :] = RIGHT
    (folder / "background.png").write_bytes(cv2.imencode(".png", background[..., ::-1])[1].tobytes())
    kernel = np.ones((9, 9), np.uint8)
    person = cv2.erode(np.min(mattes, 0), kernel) > 0.9
    room = cv2.dilate(np.max(mattes, 0), kernel) < 0.1
    if min(person.mean(), room.mean()) < 0.05:
        sys.exit(f"{person.mean():.0%} of the clip is always person and {room.mean():.0%} always room: too little")
    np.savez_compressed(
        folder / "expected.npz",
        person=person,
        room=room,
        low=np.min(pictures, 0),
        high=np.max(pictures, 0),
        background=background,
    )
    print(f"{len(pictures)} pictures, {person.mean():.0%} always person, {room.mean():.0%} always room")


def portraits() -> list[np.ndarray]:
    """uint8 (H, W, 3) RGB: one period of the demo."""
    source, found = DemoSource(size=SIZE, rate=RATE), []
    while frame := source.read():
        y, *uv = frame.planes
        u, v = (cv2.resize(p, SIZE, interpolation=cv2.INTER_LINEAR) for p in uv)
        y, u, v = 1.164 * (y.astype(np.float32) - 16), u.astype(np.float32) - 128, v.astype(np.float32) - 128
        rgb = np.dstack((y + 1.793 * v, y - 0.213 * u - 0.533 * v, y + 2.112 * u))
        found.append(np.clip(rgb, 0, 255).astype(np.uint8))
    return found


def in_the_room(portrait: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The portrait with its room painted magenta, light and shade kept, and its matte."""
    alpha = rtbg.matte(portrait)
    shade = 0.75 + 0.25 * portrait.mean(2, keepdims=True) / 255
    painted = alpha[..., None] * portrait + (1 - alpha[..., None]) * shade * np.array(MAGENTA)
    return np.clip(painted, 0, 255).astype(np.uint8), alpha


def yuyv(rgb: np.ndarray) -> bytes:
    width, height = SIZE
    planes = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    y, u, v = np.split(planes, [width * height, width * height * 5 // 4])
    packed = np.empty((height, width, 2), np.uint8)
    packed[..., 0] = y.reshape(height, width)
    packed[:, 0::2, 1], packed[:, 1::2, 1] = (p.reshape(height // 2, -1).repeat(2, 0) for p in (u, v))
    return packed.tobytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
