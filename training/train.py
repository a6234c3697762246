"""Trains the matting network: configuration, data, model, loop, checkpoint.

    python -m training.train --data PATH --out runs/balanced --model balanced --hours 1.25

A run is measured in time (`--hours`) or in epochs (`--epochs`); the learning rate's cosine and the growth of
the pictures follow the share of it that is done. Started again with the same --out it goes on where it was
(after SIGKILL where it was at most five minutes before). What it leaves in --out: `last.pt` (everything, to
resume), `best.pt` with `best.json` (fp16 weights of the moving average with the best validation IoU, and
readable configuration and figures), `history.json`, `curve.png`, `sheet.jpg` (worst and random predictions of
the last epoch).

Memory: the decoded pictures, about 3 GB, shared by the loader's workers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from engines.machine import cores
from training.checkpoint import command, describe, history_of, load_checkpoint, packed, read_state, save_best
from training.config import PRESETS, TrainConfig, build
from training.data import CALM, Batches, SampleMaker, load_backgrounds, load_people
from training.errors import TrainingError, make_folder, one_line, write
from training.evaluate import evaluate, load_validation, summarize
from training.lite import LiteUNet
from training.losses import matting_loss
from training.model import count_macs
from training.schedule import STAGES, learning_rate, stage_of, stage_sizes
from training.sheets import draw_curve, draw_sheet
from training.signals import end, undisturbed

PAUSE = 60.0  # seconds: no step takes that long
SAVE_EVERY = 300.0  # seconds of training
HOURS = 1.25  # of a run of which nothing else is said, on one CPU core


def keep_memory() -> None:
    """Lets glibc's allocator keep what it once had from the system. Left alone it gives every large map back and is
    given it again, page by page, at each layer: half of a step's time on a CPU. Elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large blocks
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the largest there is
        mallopt(-2, 1 << 28)  # M_TOP_PAD: grows in steps of this


class Average:
    """Exponential moving average of weights and norm statistics, warmed up over the first steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).eval()
        self.decay, self.steps = decay, 0

    def begin(self, weights: dict[str, Tensor]) -> None:
        """Starts from trained weights: no warm-up, they would be forgotten in it."""
        self.model.load_state_dict(weights)
        self.steps = round(20 / (1 - self.decay))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes one training step's weights in."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (20 + self.steps))
        for mine, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.dtype.is_floating_point:
                mine.lerp_(new, 1 - decay)
            else:
                mine.copy_(new)


class Run:
    """The state of one training run, from its start or from `last.pt`."""

    def __init__(self, config: TrainConfig, out: Path, device: str, teacher: nn.Module | None = None) -> None:
        torch.manual_seed(config.seed)
        self.config, self.out, self.device, self.teacher = config, out, device, teacher
        self.kind = torch.device(device).type
        self.model = build(config.model).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(self.model, config.ema)
        self.only_encoder = False  # whether no other norms than its are held: the rest began with random weights
        known = list(self.model.encoder.parameters()) if isinstance(self.model, LiteUNet) else []
        new = [p for p in self.model.parameters() if not any(p is k for k in known)]
        # What was learnt elsewhere is only to be bent to the task.
        groups = [{"params": new, "scale": 1.0}, {"params": known, "scale": config.encoder_rate}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.rate, weight_decay=config.weight_decay)
        self.rng = np.random.default_rng(config.seed)
        self.spent = self.saved = 0.0  # seconds of training, in all and until the last save
        self.history: list[dict[str, Any]] = []
        last = out / "last.pt"
        self.resumed = last.exists()
        if self.resumed:
            state = read_state(last, device)
            try:
                self.model.load_state_dict(state["model"])
            except (KeyError, RuntimeError) as exc:
                wrong = f"{last} is no run of this network"
                raise TrainingError(f"{wrong}: give the --model it began with, or another --out") from exc
            self.average.model.load_state_dict(state["average"])
            self.average.steps = state["average_steps"]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, now in zip(self.optimizer.param_groups, groups, strict=True):
                group["scale"] = now["scale"]
            self.spent = self.saved = state["spent"]
            self.only_encoder = state.get("only_encoder", False)
            if "rng" in state:
                self.rng.bit_generator.state = json.loads(state["rng"])
            self.history = json.loads(state.get("history") or (out / "history.json").read_text())
            print(f"resumed after {self.spent / 60:.0f} min, {len(self.history)} epochs", flush=True)

    def begin(self, weights: dict[str, Tensor]) -> None:
        """Starts from the trained weights of this network, or from what of them fits it."""
        mine = self.model.state_dict()
        fitting = {k: v for k, v in weights.items() if k in mine and v.shape == mine[k].shape}
        print(f"begins with {len(fitting)} of {len(mine)} tensors", flush=True)
        if self.config.hold_norms and any("running" in k for k in mine.keys() - fitting.keys()):
            raise TrainingError("--hold-norms is for all the norms of trained weights, and not all of these fit")
        self.model.load_state_dict(mine | fitting)
        if len(fitting) == len(mine):
            self.average.begin(weights)
        else:
            self.average.model.load_state_dict(self.model.state_dict())

    def learn(self) -> None:
        """Training mode, but for norms that are held still."""
        self.model.train()
        if self.config.hold_norms:
            whole = self.model.encoder if self.only_encoder and isinstance(self.model, LiteUNet) else self.model
            for part in whole.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()

    def save(self) -> None:
        """Everything needed to go on, in one file; the history in one of its own too, for people."""
        history = json.dumps(self.history, indent=1)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "spent": self.spent,
            "only_encoder": self.only_encoder,
            "rng": json.dumps(self.rng.bit_generator.state),
            "history": history,
        }
        write({self.out / "last.pt": packed(state), self.out / "history.json": history.encode()})
        self.saved = self.spent

    def step(self, batch: Tensor, rate: float, own_past: bool) -> float:
        """One optimizer step on a uint8 (N, 5, H, W) batch; returns the loss."""
        data = batch.to(self.device, non_blocking=True).float().div_(255)
        x = data[:, :4].contiguous(memory_format=torch.channels_last)
        if own_past:
            # Half the batch gets the network's own answer, after one to three rounds and a little displaced each
            # time, as its past. It must not learn that a past is always right: its mistakes would feed on
            # themselves, and a still picture's matte would drift.
            half = x[: len(x) // 2]
            self.model.eval()
            for _ in range(int(self.rng.integers(1, 4))):
                with torch.no_grad(), torch.autocast(self.kind, torch.bfloat16):
                    answer = self.model(half).float()
                dy, dx = (int(d) for d in self.rng.integers(-2, 3, 2))
                half[:, 3:] = torch.roll(answer, (dy, dx), (2, 3))
            self.learn()
        with torch.autocast(self.kind, torch.bfloat16):
            logits = self.model(x)
        loss = matting_loss(logits, data[:, 4:])
        if self.teacher is not None:
            size = [-(-s // 32) * 32 for s in x.shape[2:]]
            seen = F.interpolate(x, size, mode="bilinear") if size != list(x.shape[2:]) else x
            with torch.no_grad(), torch.autocast(self.kind, torch.bfloat16):
                answer = F.interpolate(self.teacher(seen).float(), x.shape[2:], mode="bilinear")
            loss = loss + self.config.distill * (matting_loss(logits, answer) - loss)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model)
        return float(loss.detach())


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    hours: float | None,
    epochs: int | None,
    device: str,
    init: Path | None = None,
    teacher: Path | None = None,
    masks: Path | None = None,
) -> None:
    """Runs to the end of its hours or epochs. Ctrl-C, SIGTERM (which `main` sees to) and errors leave a checkpoint to
    resume from; `init` is a `best.pt` whose weights a new run begins with, `teacher` one whose mattes are learnt beside
    the true ones (distillation, Hinton et al. 2015), `masks` a folder of refined masks (`training.refine`)."""
    make_folder(out)
    check_device(device)
    keep_memory()
    cv2.setNumThreads(0)  # before the loader's workers are forked: they would wait for threads they do not have
    maker = SampleMaker(load_people(data, masks), load_backgrounds(data))
    validation = load_validation(data)
    guide = load_checkpoint(teacher)[0].to(device).to(memory_format=torch.channels_last) if teacher else None  # type: ignore[call-overload]
    run = Run(config, out, device, guide)
    if not run.resumed and init is not None:
        run.begin(load_checkpoint(init)[0].state_dict())
    elif not run.resumed and isinstance(run.model, LiteUNet):
        run.model.begin()
        run.average.model.load_state_dict(run.model.state_dict())
        run.only_encoder = True
        print("the encoder begins with its published weights", flush=True)
    parameters = sum(p.numel() for p in run.model.parameters())
    macs = count_macs(build(config.model).eval(), config.sizes[0][1], config.sizes[0][0])
    print(f"{len(maker.people)} people, {len(maker.scenes)} scenes, {parameters / 1e6:.2f} M parameters, "
          f"{macs / 1e6:.0f} M multiply-adds at {config.sizes[0]}", flush=True)  # fmt: skip
    steps = config.epoch_pictures // config.batch
    earlier = history_of(init)
    if run.resumed and (out / "best.json").exists():  # what it began with stays, named again or not
        earlier = describe(out / "best.pt")["commands"][:-1]
        init = init or (out if earlier else None)
    how: dict[str, Any] = {
        "commands": [*earlier, command(config, hours, epochs, init, teacher, masks)],
        "device": torch.cuda.get_device_name(device) if run.kind == "cuda" else f"{torch.get_num_threads()} CPU cores",
    }
    best = max((h["iou"] for h in run.history), default=-1.0)

    def done() -> float:
        return run.spent / 3600 / hours if hours else len(run.history) / (epochs or 1)

    if done() >= 1:
        print(f"{out} has had its {hours:g} hours" if hours else f"{out} has had its {epochs} epochs", "already: "
              "give more of them to go on", flush=True)  # fmt: skip
    stage, loader = -1, None
    try:
        while done() < 1:
            if stage_of(config, done()) != stage:
                stage = stage_of(config, done())
                # What was cut out and pasted teaches; what is seen in use comes last (as in Ge et al. 2021, "YOLOX").
                last = stage == len(STAGES) - 1 and config.first_stage < stage
                made = SampleMaker(maker.people, maker.scenes, CALM) if last or config.calm else maker
                sizes = stage_sizes(config, stage)
                source = Batches(made, config.batch, sizes, config.seed + 1000 * len(run.history))
                loader = iter(DataLoader(source, batch_size=None, num_workers=cores(), prefetch_factor=4))
                print("sizes", sizes, flush=True)
            assert loader is not None
            run.learn()
            losses, start = [], time.monotonic()
            for i in range(steps):
                share = done() + (0 if hours else i / steps / (epochs or 1))
                own = bool(run.rng.random() < config.own_past)
                began = time.monotonic()
                losses.append(run.step(next(loader), learning_rate(config, share), own))
                run.spent += min(time.monotonic() - began, PAUSE)  # what was stopped and went on did not train
                if run.spent >= run.saved + SAVE_EVERY:
                    run.save()
                if hours and (done() >= 1 or stage_of(config, done()) != stage):
                    break
            seconds = time.monotonic() - start
            scores = evaluate(run.average.model, validation, config.sizes, device)
            figures = {
                "epoch": len(run.history) + 1,
                "minutes": round(run.spent / 60, 1),
                "stage": stage,
                "loss": round(float(np.mean(losses)), 4),
                "pictures_s": round(len(losses) * config.batch / seconds),
                **summarize(scores),
            }
            run.history.append(figures)
            print(json.dumps(figures), flush=True)
            if figures["iou"] > best:
                best = figures["iou"]
                save_best(out, run.average.model, config, how, figures)
            draw_curve(run.history, out / "curve.png")
            draw_sheet(run.average.model, validation, scores, config.sizes, out / "sheet.jpg", device)
            run.save()
    except BaseException:
        with undisturbed():
            run.save()
        raise


def check_device(device: str) -> None:
    """Raises TrainingError where torch has no such device here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise TrainingError(f"--device {device} cannot be used ({str(exc).splitlines()[0]}): cpu always can") from exc


@one_line("training.train", "interrupted: the same command goes on with what was learnt")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with person/, alpha/ and backgrounds/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, e.g. runs/balanced")
    parser.add_argument("--hours", type=float, help=f"length of the run in hours of training (default: {HOURS})")
    parser.add_argument("--epochs", type=int, help="length of the run in epochs (instead of --hours)")
    parser.add_argument("--batch", type=int, help="pictures a step (default: 32; 16 for quality and both)")
    parser.add_argument(
        "--epoch-pictures", type=int, default=TrainConfig.epoch_pictures, help="an epoch's (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=TrainConfig.seed, help="of all that is drawn")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of torch (default here: %(default)s)"
    )
    parser.add_argument(
        "--first-stage", type=int, default=0, choices=range(len(STAGES)),
        help="skip the stages of smaller pictures before this one",
    )  # fmt: skip
    parser.add_argument("--ema", type=float, default=TrainConfig.ema,
                        help="decay of the weights' moving average (default: %(default)s)")  # fmt: skip
    parser.add_argument("--init", type=Path, help="begin with the weights of this best.pt")
    parser.add_argument("--model", choices=PRESETS, default="balanced", help="what to train (default: balanced)")
    parser.add_argument("--teacher", type=Path, help="learn from the mattes of this best.pt as well")
    parser.add_argument("--also", choices=PRESETS, nargs="+", default=[], help="some batches have these models' sizes")
    parser.add_argument(
        "--calm",
        action="store_true",
        help="photographs nearly as they are, as the last stage of a run with several has them",
    )
    parser.add_argument("--masks", type=Path, help="take the refined masks of this folder (see training.refine)")
    parser.add_argument(
        "--hold-norms",
        action="store_true",
        help="leave the norms as the weights that it begins with have them (on CPUs much faster)",
    )
    parser.add_argument(
        "--rate", type=float, default=TrainConfig.rate, help="peak learning rate (default: %(default)s)"
    )
    parser.add_argument(
        "--encoder-rate",
        type=float,
        default=TrainConfig.encoder_rate,
        help="the encoder's share of it (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.hours is not None and args.epochs is not None:
        parser.error("give --hours or --epochs, not both")
    for name, least in (("hours", 0), ("epochs", 0), ("rate", 0), ("ema", 0), ("encoder_rate", -1e-9)):
        value = getattr(args, name)
        if value is not None and not least < value < (1 if name == "ema" else math.inf):
            parser.error(f"--{name.replace('_', '-')} {value:g}: it must be over 0" + " and under 1" * (name == "ema"))
    if args.hold_norms and args.init is None and args.model == "unet":
        parser.error("--hold-norms is to go on from trained weights: name them with --init")
    if args.epochs is None and args.hours is None:
        args.hours = HOURS
    preset = PRESETS[args.model]
    config = replace(
        preset,
        batch=args.batch or preset.batch,
        epoch_pictures=args.epoch_pictures,
        seed=args.seed,
        rate=args.rate,
        encoder_rate=args.encoder_rate,
        ema=args.ema,
        first_stage=args.first_stage,
        also=tuple(args.also),
        hold_norms=args.hold_norms,
        calm=args.calm,
    )
    if not 0 < config.batch <= config.epoch_pictures:
        parser.error(f"an epoch of --epoch-pictures {config.epoch_pictures} holds no --batch of {config.batch}")
    signal.signal(signal.SIGTERM, end)
    train(
        config,
        args.data,
        args.out,
        hours=args.hours,
        epochs=args.epochs,
        device=args.device,
        init=args.init,
        teacher=args.teacher,
        masks=args.masks,
    )


if __name__ == "__main__":
    main()
