"""Which files are pictures, and which of them training never sees. Imports nothing: the benchmarks use it too."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")


def held_out(name: str) -> bool:
    """Whether a background (its file's stem) belongs to the tenth that training must never see."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 10 == 0


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by their suffix, sorted by name; none where there is no folder."""
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
