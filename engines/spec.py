"""What a compiled network takes and gives."""

from __future__ import annotations

import math
from collections.abc import Sequence


def nearest_size(sizes: Sequence[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """The (width, height) among `sizes` whose aspect ratio is nearest to that of a picture."""
    aspect = math.log(width / height)
    return min(sizes, key=lambda s: abs(math.log(s[0] / s[1]) - aspect))
