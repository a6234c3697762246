"""A network of 8-bit integers beside the exported one: NAME.int8.onnx, half the time on CPUs.

    python -m training.quantise --data PATH --name balanced --out engines/models

Quantised after training (Q/DQ nodes; activations unsigned, one scale each, filters signed, one scale per channel) with
ranges from augmented training pictures: all convolutions, the stem's as one (`training.stem`), what follows them, and
their sums. The head's answer is not rounded: its steps would be seen in the matte (0.03 of alpha and more). The rule:
it is added to the card, and with it becomes what CPUs use, only if no mean IoU (of all, of a group) falls by more than
0.003 and no MAD rises by more than 3 %. Other models that are the same graph at other sizes have to be measured with a
new file too: until then their cards name none.

CPUs without VNNI add two products in 16 bits, where they overflow: there the loss is some 0.05 of IoU, so `engines`
asks the machine first, with `probe.onnx`, which is made here too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from training.data import Augment, SampleMaker, load_backgrounds, load_people
from training.errors import TrainingError, one_line
from training.evaluate import evaluate, load_validation, summarize
from training.export import OnnxModel, read_card, strip_notes
from training.stem import SCALE, SEEN, ZERO, has_stem, merge_stem

PICTURES = 256  # for the ranges
WORST_IOU, WORST_MAD = 0.003, 1.03


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Augmented training pictures with pasts, float32 (1, 4, height, width) each."""

    def __init__(self, data: Path, size: tuple[int, int], count: int) -> None:
        people = load_people(data)
        # The usual, not the extremes, whose ranges are wider.
        made = Augment(before=0, headphones=0, backlight=0, dusk=0, wide_angle=0, crowd=0)
        maker = SampleMaker(people[:: max(1, len(people) // 400)], load_backgrounds(data)[:100], made)
        batch = maker.batch(np.random.default_rng(8), count, *size)[:, :4]
        self.rest: Iterator[Any] = iter(batch.astype(np.float32) / 255)

    def get_next(self) -> dict[str, Any] | None:
        """As ONNX Runtime asks for it."""
        picture = next(self.rest, None)
        return None if picture is None else {"frame": picture[None]}


def full_precision(path: Path, target: Path) -> onnx.ModelProto:
    """The graph with its filters in fp32 and its stem as one convolution, written to `target`."""
    model = onnx.load(str(path))
    halves = {w.name: w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT16}
    for node in [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in halves]:
        weight = halves[node.input[0]]
        full = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), node.output[0])
        model.graph.initializer.append(full)
        model.graph.initializer.remove(weight)
        model.graph.node.remove(node)
    if has_stem(model):
        merge_stem(model)
    onnx.save(model, str(target))
    return model


def inside(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether a node is to be of 8 bits: a convolution, what follows it, or the sum of what such nodes give."""
    if node.op_type == "Conv":
        return True
    if node.op_type == "Add":
        makers = [n for n in nodes if n.output[0] in node.input]
        return len(makers) == 2 and all(inside(n, nodes) for n in makers)
    return node.op_type in ("Clip", "Relu", "Resize")


def quantise(path: Path, target: Path, data: Path, size: tuple[int, int], pictures: int = PICTURES) -> None:
    """Writes the 8-bit graph of the exported graph at `path` to `target`."""
    # One picture's outlier must not coarsen all others.
    options: dict[str, Any] = {"CalibMovingAverage": True}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "full.onnx"
        nodes = full_precision(path, source).graph.node
        kept = [n.name for n in nodes if not inside(n, nodes)]
        if any(SEEN in n.output for n in nodes):
            options["TensorQuantOverrides"] = {SEEN: [{"scale": SCALE, "zero_point": ZERO}]}
        quantize_static(
            str(source),
            str(target),
            Pictures(data, size, pictures),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=kept,
            extra_options=options,
        )
    answer_in_full(target)
    strip_notes(target)


def answer_in_full(path: Path) -> None:
    """Takes the rounding of what the head (told by the name of its filter) gives out of the graph, where it has one,
    and then the constants that nothing reads."""
    model = onnx.load(str(path))
    graph = model.graph
    makers, takers = {n.output[0]: n for n in graph.node}, {i: n for n in graph.node for i in n.input}
    for head in [n for n in graph.node if n.op_type == "Conv" and is_head(n, makers)]:
        rounded = takers.get(head.output[0])
        if rounded is None or rounded.op_type != "QuantizeLinear":
            continue
        restored = takers[rounded.output[0]]
        if restored.output[0] in {o.name for o in graph.output}:
            continue
        for node in graph.node:
            node.input[:] = [head.output[0] if name == restored.output[0] else name for name in node.input]
        graph.node.remove(rounded)
        graph.node.remove(restored)
    read = {name for node in graph.node for name in node.input}
    for weight in [w for w in graph.initializer if w.name not in read]:
        graph.initializer.remove(weight)
    path.write_bytes(model.SerializeToString())


def is_head(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether the filters of a convolution of 8 bits are those of the head."""
    filters = makers.get(node.input[1])
    return filters is not None and filters.input[0].startswith("head.")


def write_probe(path: Path) -> None:
    """A tiny quantised network with the largest numbers: (1, 16, 8, 8) of ones gives 16 x 127/128 and then 9 x 16 x
    (127/128)**2 where 8-bit products are added exactly."""

    def quantised(name: str, source: str, scale: float) -> list[Any]:
        weights.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}.scale"))
        inputs = [f"{name}.scale", "zero"]
        return [
            helper.make_node("QuantizeLinear", [source, *inputs], [f"{name}.q"]),
            helper.make_node("DequantizeLinear", [f"{name}.q", *inputs], [name]),
        ]

    def convolution(name: str, source: str, kernel: int) -> list[Any]:
        filters = np.full((16, 16, kernel, kernel), 127, np.int8)
        weights.append(numpy_helper.from_array(filters, f"{name}.w"))
        inputs = [f"{name}.w", "step", "nothing"]
        return [
            helper.make_node("DequantizeLinear", inputs, [f"{name}.f"], axis=0),
            helper.make_node("Conv", [source, f"{name}.f"], [name], kernel_shape=[kernel, kernel]),
        ]

    weights = [
        numpy_helper.from_array(np.array(0, np.uint8), "zero"),
        numpy_helper.from_array(np.full(16, 1 / 128, np.float32), "step"),
        numpy_helper.from_array(np.zeros(16, np.int8), "nothing"),
    ]
    top = 16 * 127 / 128
    nodes = [
        *quantised("x", "frame", 1 / 255),
        *convolution("a", "x", 1),
        *quantised("b", "a", top / 255),
        *convolution("c", "b", 3),
        *quantised("alpha", "c", 9 * top * top / 255),
    ]
    frame = helper.make_tensor_value_info("frame", TensorProto.FLOAT, [1, 16, 8, 8])
    alpha = helper.make_tensor_value_info("alpha", TensorProto.FLOAT, [1, 16, 6, 6])
    graph = helper.make_graph(nodes, "probe", [frame], [alpha], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def holds(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What breaks the rule, one line each; empty: it holds."""
    lost = {k: before[k] - after[k] for k in before if k.startswith("iou")}
    grown = {k: after[k] / max(before[k], 1e-9) for k in before if k.startswith("mad")}
    faults = [f"{k} falls by {v:.4f}" for k, v in lost.items() if v > WORST_IOU]
    return faults + [f"{k} grows to {v:.3f} of what it was" for k, v in grown.items() if v > WORST_MAD]


def digest(path: Path) -> str:
    """The checksum of a file as the cards name it; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def describes(card: dict[str, Any], graph: Path, eight: Path) -> bool:
    """Whether a card is of this graph, as it is now, and its 8-bit graph is that file, as it is now."""
    named = (card.get("int8") or {}).get("sha256")
    return card.get("graph") == graph.name and card.get("sha256") == digest(graph) and named == digest(eight)


def cards_of(folder: Path) -> dict[Path, dict[str, Any]]:
    """The cards in a folder, whatever else lies there."""
    found = {path: read_card(path) for path in sorted(folder.glob("*.json"))}
    return {path: card for path, card in found.items() if card is not None}


def forget(graph: Path, eight: Path) -> None:
    """Takes the 8-bit graph off the cards of all models of this graph where it is not the file `eight`."""
    for path, card in cards_of(graph.parent).items():
        if card.get("graph") == graph.name and "int8" in card and not describes(card, graph, eight):
            del card["int8"]
            path.write_text(json.dumps(card, indent=1) + "\n")
            print(f"{path.name} names no 8-bit graph now: python -m training.quantise --data PATH --name {path.stem}")


@one_line("training.quantise")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of an exported model")
    parser.add_argument("--out", type=Path, default=Path("engines/models"), help="its folder (default: %(default)s)")
    args = parser.parse_args(argv)
    card_path = args.out / f"{args.name}.json"
    card = read_card(card_path) if card_path.exists() else None
    if card is None:
        raise TrainingError(f"{card_path} is no card of an exported model: name one, and its folder as --out")
    path = args.out / card["graph"]
    if not path.exists():
        raise TrainingError(f"{path} is missing: export it again")
    target = made = path.with_suffix(".int8.onnx")
    sizes = [tuple(s) for s in card["sizes"]]
    own = path.stem == args.name  # else the file is that of another model, whose network it is at other sizes
    if not own and not target.exists():
        raise TrainingError(f"{target} is missing: quantise {path.stem} first, whose graph this is")
    try:
        if own:
            made = target.with_suffix(".new.onnx")
            quantise(path, made, args.data, sizes[0])
            write_probe(args.out / "probe.onnx")
        validation = load_validation(args.data)
        before = summarize(evaluate(OnnxModel(path), validation, sizes))
        after = summarize(evaluate(OnnxModel(made), validation, sizes))
        for key, value in before.items():
            print(f"{key:10s} {value:.5f} {after[key]:.5f}")
        faults = holds(before, after)
        if not faults:
            forget(path, made)  # before the file is another, so that no card ever names one that is not there
            made.replace(target)
    finally:
        if made != target:
            made.unlink(missing_ok=True)
    if faults:
        if own:
            forget(path, target)
            if not any(describes(c, path, target) for c in cards_of(args.out).values()):
                target.unlink(missing_ok=True)
        else:
            card.pop("int8", None)
            card_path.write_text(json.dumps(card, indent=1) + "\n")
        raise SystemExit(f"not kept: {', '.join(faults)}")
    card["int8"] = {
        "file": target.name,
        "sha256": digest(target),
        "metrics": after,
        "made_with": f"onnxruntime {onnxruntime.__version__}",
    }
    card_path.write_text(json.dumps(card, indent=1) + "\n")
    words, command = card_path.with_suffix(".md"), f"    python -m training.quantise --data PATH --name {args.name}\n"
    if command not in (text := words.read_text()):
        words.write_text(text + command)  # it ends with the commands that reproduce the model


if __name__ == "__main__":
    main()
