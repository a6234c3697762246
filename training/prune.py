"""A thinner network out of a trained one: the start of `fast`.

    python -m training.prune --data PATH --checkpoint training/checkpoints/balanced.pt --out runs/start

Whole channels are taken out, those that give the least to the convolution after them (the root mean square of the
channel times the norm of its filters), and that convolution is fitted again, by least squares on training pictures,
to what it gave before (after He et al. 2017, "Channel pruning"). What is left is then trained on:
`training.train --model fast --init runs/start/best.pt`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.checkpoint import load_checkpoint, save_best
from training.config import PRESETS
from training.data import SampleMaker, load_backgrounds, load_people
from training.evaluate import evaluate, load_validation, summarize
from training.lite import Inverted, LiteConfig, LiteUNet
from training.model import Up

PICTURES = 96
PLACES = 64  # of each picture, from which a convolution is fitted again


class Seen:
    """What went into a convolution: places of its input, unfolded, and the root mean square of each channel."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.columns: list[Tensor] = []
        self.hook = conv.register_forward_hook(self)

    def __call__(self, conv: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        """Called by torch after each forward."""
        (x,), k = inputs, self.conv.kernel_size[0]
        x = x.float()
        columns = F.unfold(x, k, padding=k // 2) if k > 1 else x.flatten(2)  # (N, C k k, H W)
        places = torch.randint(columns.shape[2], (min(PLACES, columns.shape[2]),))
        self.columns.append(columns[:, :, places].permute(0, 2, 1).flatten(0, 1))

    def fit(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` channels to keep, in order, and the filters (out, count, K, K) that do without the others."""
        self.hook.remove()
        weight, k = self.conv.weight.detach(), self.conv.kernel_size[0]
        seen = torch.cat(self.columns)
        rms = seen.pow(2).mean(0).view(-1, k * k).mean(1).sqrt()
        kept = (rms * weight.flatten(2).norm(dim=(0, 2))).topk(count).indices.sort().values
        given = seen @ weight.flatten(1).T
        left = seen.view(len(seen), -1, k * k)[:, kept].flatten(1)
        gram = left.T @ left
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
        return kept, torch.linalg.solve(gram, left.T @ given).T.reshape(len(weight), count, k, k)


def take(source: nn.Module, target: nn.Module, kept: Tensor) -> None:
    """Copies the output channels `kept` of a convolution or norm."""
    mine = target.state_dict()
    for name, value in source.state_dict().items():
        mine[name].copy_(value[kept] if value.dim() else value)


def steps_of(network: LiteUNet) -> tuple[list[Inverted], list[Up], list[nn.Conv2d]]:
    """The encoder's blocks that widen, the decoder's steps from the deepest on, and what follows each of those."""
    blocks = [b for b in network.encoder._blocks if isinstance(b, Inverted) and b.widens]
    ups = [u for n in ("up4", "up3", "up2", "up1") if isinstance(u := getattr(network, n, None), Up)]
    return blocks, ups, [*(first(u.deep) for u in ups[1:]), network.head]


def first(part: nn.Module) -> nn.Conv2d:
    """The convolution of one with its norm."""
    (conv,) = [m for m in part.children() if isinstance(m, nn.Conv2d)]
    return conv


def norm_of(part: nn.Module) -> nn.BatchNorm2d:
    """The norm of a convolution with its norm."""
    (norm,) = [m for m in part.children() if isinstance(m, nn.BatchNorm2d)]
    return norm


@torch.no_grad()
def prune(network: LiteUNet, config: LiteConfig, pictures: Sequence[Tensor]) -> LiteUNet:
    """A network of `config`, no wider anywhere than `network` and with as many levels, that does nearly the same.
    `pictures` are float (1, 4, H, W), as the network takes them."""
    network.eval()
    thin = LiteUNet(config).eval()
    mine = thin.state_dict()
    thin.load_state_dict({k: v if v.shape == mine[k].shape else mine[k] for k, v in network.state_dict().items()})
    blocks, ups, after = steps_of(network)
    seen = {c: Seen(c) for c in (*(b._project_conv for b in blocks), *(first(u.refine) for u in ups), *after)}
    for picture in pictures:
        network(picture)
    thin_blocks, thin_ups, thin_after = steps_of(thin)
    for block, narrow in zip(blocks, thin_blocks, strict=True):
        kept, weight = seen[block._project_conv].fit(narrow._project_conv.in_channels)
        for name in ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1"):
            take(getattr(block, name), getattr(narrow, name), kept)
        narrow._project_conv.weight.copy_(weight)
    feeds: Tensor | None = None  # filters of this step's `deep`, fitted to the channels that the step before kept
    for up, target, conv, follower in zip(ups, thin_ups, after, thin_after, strict=True):
        middle, refine = seen[first(up.refine)].fit(first(target.refine).in_channels)
        for source, part in ((up.deep, target.deep), (up.skip, target.skip)):
            if part is target.skip or feeds is None:
                take(first(source), first(part), middle)
            take(norm_of(source), norm_of(part), middle)
        if feeds is not None:
            first(target.deep).weight.copy_(feeds[middle])
        kept, feeds = seen[conv].fit(follower.in_channels)
        first(target.refine).weight.copy_(refine[kept])
        take(norm_of(up.refine), norm_of(target.refine), kept)
    assert feeds is not None
    thin.head.weight.copy_(feeds)
    return thin


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the trained network's best.pt")
    parser.add_argument("--model", choices=PRESETS, default="fast", help="what it becomes (default: fast)")
    parser.add_argument("--out", type=Path, required=True, help="folder for best.pt and best.json")
    args = parser.parse_args(argv)
    network, config = load_checkpoint(args.checkpoint)
    preset = PRESETS[args.model]
    if not isinstance(network, LiteUNet) or not isinstance(preset.model, LiteConfig):
        raise SystemExit("training.prune: only networks with EfficientNet-Lite's encoder can be made thinner")
    torch.manual_seed(9)
    people = load_people(args.data)
    maker = SampleMaker(people[:: max(1, len(people) // 800)], load_backgrounds(args.data)[:200])
    batch = maker.batch(np.random.default_rng(9), PICTURES, *config.sizes[0])[:, :4]
    thin = prune(network, preset.model, [torch.from_numpy(p[None]).float().div(255) for p in batch])
    stored = json.loads(args.checkpoint.with_suffix(".json").read_text())
    command = f"python -m training.prune --data PATH --checkpoint PREVIOUS --model {args.model} --out runs/NAME"
    figures = summarize(evaluate(thin, load_validation(args.data), preset.sizes))
    figures = {"epoch": 0, "minutes": 0.0, **figures}
    args.out.mkdir(parents=True, exist_ok=True)
    how = {"commands": [*stored["commands"], command], "device": stored["device"]}
    save_best(args.out, thin, replace(preset, model=preset.model), how, figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
