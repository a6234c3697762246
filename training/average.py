"""The mean of several checkpoints of one network: weights of one run, or of runs that began with one another.

    python -m training.average --data PATH --out runs/NAME [--contrast F O] [--sizes NAME] A/best.pt B/last.pt ...

Where the loss is flat between them, the mean is better than each (Izmailov et al. 2018, Wortsman et al. 2022). Norm
statistics are averaged as weights are. Leaves `best.pt` with `best.json`, as a run of `training.train` does; its
commands are those of the last one named, its figures are measured on the mean. --contrast gives the network, one
checkpoint's too, another `LiteConfig.contrast`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from training.checkpoint import describe, load_checkpoint, save_best
from training.config import PRESETS
from training.errors import make_folder, one_line
from training.evaluate import evaluate, load_validation, summarize
from training.lite import LiteConfig, LiteUNet


def mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor; of counters, the last. Raises ValueError for different networks."""
    if any({k: v.shape for k, v in s.items()} != {k: v.shape for k, v in states[0].items()} for s in states):
        raise ValueError("these checkpoints are of different networks: their weights have no mean")
    return {
        k: torch.stack([s[k] for s in states]).mean(0) if v.dtype.is_floating_point else v
        for k, v in states[-1].items()
    }


@one_line("training.average")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--contrast", type=float, nargs=2, metavar=("F", "O"), help="factor and offset of the logits")
    parser.add_argument("--sizes", choices=PRESETS, help="the input sizes of this preset (default: the last one's)")
    args = parser.parse_args(argv)
    make_folder(args.out)
    found = [load_checkpoint(path) for path in args.checkpoints]
    model, config = found[-1]
    try:
        model.load_state_dict(mean([m.state_dict() for m, _ in found]))
    except ValueError as exc:
        raise SystemExit(f"training.average: {exc}") from exc
    if args.contrast:
        if not isinstance(config.model, LiteConfig) or not isinstance(model, LiteUNet):
            raise SystemExit("training.average: a contrast is for networks with EfficientNet-Lite's encoder only")
        factor, offset = args.contrast
        model.config = replace(config.model, contrast=(factor, offset))
        config = replace(config, model=model.config)
    if args.sizes:
        config = replace(config, sizes=PRESETS[args.sizes].sizes)
    last = describe(args.checkpoints[-1])
    figures = last["figures"] | summarize(evaluate(model, load_validation(args.data), config.sizes))
    contrast = f"--contrast {args.contrast[0]:g} {args.contrast[1]:g} " if args.contrast else ""
    sizes = f"--sizes {args.sizes} " if args.sizes else ""
    whose = ("LAST" if path == args.checkpoints[-1] else "EARLIER" for path in args.checkpoints)
    names = " ".join(w + "/last.pt" * (p.name == "last.pt") for w, p in zip(whose, args.checkpoints, strict=True))
    step = f"python -m training.average --data PATH --out runs/NAME {contrast}{sizes}{names}"
    save_best(args.out, model, config, {"commands": [*last["commands"], step], "device": last["device"]}, figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
