"""What the engines use of this machine: its cores and the user's cache folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

logger = logging.getLogger("engines")

# More threads gain little on networks this small, and the machine also decodes, encodes and holds a call.
MOST_THREADS = 4


def cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def default_threads() -> int:
    """Cores this process may use, 4 at most."""
    return min(MOST_THREADS, cores())


def calm_openmp() -> None:
    """Keeps torch's threads from spinning for milliseconds while they wait for one another, unless the user's
    environment says how they wait. To be called before torch is imported first; child processes inherit it.

    GNU's OpenMP turns 300,000 times before it sleeps: while another program keeps a core busy (an encoder, the other
    stages of a video) a network of 17 ms takes 825 on two cores. At 5,000: 54, and 18 where nothing else runs."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def cache_dir(*parts: str) -> Path | None:
    """The folder for compiled networks, made if need be; None where nothing can be written.

    $RTBG_CACHE_DIR, else `rtbg` in the user's cache folder; `parts` name a folder below it. Private to the
    user where this makes it, as a compiled network can hold code. Never raises."""
    try:
        chosen = os.environ.get("RTBG_CACHE_DIR")
        if chosen:
            base = Path(chosen)
        else:
            import platformdirs

            base = platformdirs.user_cache_path("rtbg", appauthor=False)
        folder = base.joinpath(*parts)
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except (OSError, ValueError, ImportError) as exc:
        logger.info("no cache folder (%s): networks are compiled anew at every start", exc)
        return None
    if not usable:
        logger.info("the cache folder %s is not writable: networks are compiled anew at every start", folder)
        return None
    return folder
