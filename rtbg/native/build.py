"""Builds the native code for every system that rtbg runs on, with one compiler that comes as a Python package.

    pip install '.[native]' && python -m rtbg.native.build

The results are kept beside this file and travel in the wheel, so that nobody who installs rtbg needs a compiler;
`--check` builds them again and compares them byte by byte, as `.ci/run` does. The code uses no library and no system
call.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.machine import cores
from rtbg.native import C_FILES, FOLDER, ISAS, SOURCES, TARGETS, library_name, source_hash

# One target of the compiler's for each system, and the names of the sets of instructions there.
_SYSTEMS = {"linux": "linux-musl", "macos": "macos.12.0", "windows": "windows-gnu"}
_CPUS = {"x86_64": ("x86_64", "x86_64_v3"), "aarch64": ("baseline",)}
_FLAGS = (
    "-O3", "-std=c11", "-Wall", "-Wextra", "-Werror", "-Wframe-larger-than=4000",
    "-ffreestanding", "-fno-builtin", "-ffp-contract=off",
    "-fvisibility=hidden", "-fno-stack-protector", "-fno-sanitize=all", "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables", "-g0",
)  # fmt: skip


def build(target: tuple[str, str], out: Path) -> Path:
    """Builds for a (system, processor) of `TARGETS` into the folder `out`; returns the file. Raises SystemExit where
    the compiler is missing or fails."""
    system, cpu = target
    name = library_name(target)
    triple = f"--target={cpu}-{_SYSTEMS[system]}"
    flags = [triple, *_FLAGS, *([] if system == "windows" else ["-fPIC"])]
    with tempfile.TemporaryDirectory() as folder:  # and there by relative names: no path gets into a result

        def zig(*arguments: str) -> None:
            command = [sys.executable, "-m", "ziglang", "cc", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            if done.returncode:
                missing = "No module named ziglang" in done.stderr
                raise SystemExit("the compiler is missing: pip install '.[native]'" if missing else done.stderr)

        for source in C_FILES:
            shutil.copy(FOLDER / source, folder)
        objects = ["cpu.o"]
        zig(*flags, "-c", "cpu.c", "-o", "cpu.o")
        for isa, instructions in zip(ISAS, _CPUS[cpu], strict=False):
            for depth in (8, 16):
                objects.append(f"{isa}{depth}.o")
                defined = f"-DDEPTH={depth}", f"-DISA={isa}", f"-mcpu={instructions}", "-fno-unroll-loops"
                zig(*flags, *defined, "-c", "edge.c", "-o", objects[-1])
            objects.append(f"{isa}.o")
            zig(*flags, f"-DISA={isa}", f"-mcpu={instructions}", "-c", "grid.c", "-o", objects[-1])
        link = ["-Wl,-install_name,@rpath/" + name] if system == "macos" else []
        zig(triple, "-shared", "-nostdlib", "-s", *link, "-o", name, *objects)
        made = (Path(folder) / name).read_bytes()
    if system == "windows":  # the time of the build, in the header that byte 60 points to
        at = int.from_bytes(made[60:64], "little") + 8
        made = made[:at] + bytes(4) + made[at + 4 :]
    (out / name).write_bytes(made)
    return out / name


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["-".join(t) for t in TARGETS], help="one of them")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, default=FOLDER, help="folder of the results (default: beside the source)")
    where.add_argument("--check", action="store_true", help="keep nothing, and fail where what lies there is another")
    args = parser.parse_args(argv)
    wanted = [t for t in TARGETS if args.only in (None, "-".join(t))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(cores()) as pool:
        out = Path(folder) if args.check else args.out
        for made in pool.map(lambda target: build(target, out), wanted):
            shipped = FOLDER / made.name
            if args.check and not (shipped.is_file() and shipped.read_bytes() == made.read_bytes()):
                raise SystemExit(f"{made.name} is not what its source makes: python -m rtbg.native.build")
            print(f"{made.name} {made.stat().st_size}{' as shipped' if args.check else ''}")
    if args.only is None and not args.check:
        (args.out / "source.sha256").write_text(f"{source_hash()}  {' '.join(SOURCES)}\n")


if __name__ == "__main__":
    main()
