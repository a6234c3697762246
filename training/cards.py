"""Puts the figures of `benchmarks.quality` and `benchmarks.past` on the cards of the exported models.

    python -m benchmarks.quality --data PATH > quality.txt
    python -m benchmarks.past --data PATH > past.txt
    python -m training.cards quality.txt past.txt

The last line of each file is read. Figures of models without a card are left out; what a card had of the same
benchmark is replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.errors import TrainingError, one_line

TITLES = {
    "quality": "All of `benchmarks.quality`, in the precision that is shipped",
    "past": "What the previous matte does (`benchmarks.past`)",
}


def rows(benchmark: str, figures: dict[str, Any]) -> list[str]:
    """The Markdown table of one model's figures."""
    if benchmark == "past":
        lines = ["| | with its past | without |", "|-|-|-|"]
        return lines + [f"| {k} | {v} | {figures['none'].get(k, '')} |" for k, v in figures["past"].items()]
    return ["| | |", "|-|-|", *(f"| {k} | {v} |" for k, v in figures.items())]


def section(text: str, title: str, lines: Sequence[str]) -> str:
    """`text`, a Markdown card, with a section of that title before `## Trained on`, an older one replaced."""
    head = f"## {title}\n"
    if head in text:
        before, _, rest = text.partition(head)
        text = before + rest[rest.index("\n## ") + 1 :]
    before, mark, rest = text.partition("## Trained on")
    return before + head + "\n".join(lines) + "\n\n" + mark + rest


def read_report(path: Path) -> dict[str, Any]:
    """The last line of what a benchmark printed. Raises TrainingError."""
    try:
        report = dict(json.loads(path.read_text().splitlines()[-1]))
        if report["benchmark"] in TITLES and isinstance(report["models"], dict):
            return report
    except (IndexError, KeyError, TypeError, ValueError):
        pass
    names = " or ".join(f"benchmarks.{name}" for name in TITLES)
    raise TrainingError(f"{path} does not end with the line of JSON of {names}: keep all that they print")


def add(folder: Path, report: dict[str, Any]) -> list[str]:
    """Adds a benchmark's figures to every card it has some for; the names of these models."""
    done = []
    for name, figures in report["models"].items():
        card = folder / f"{name}.json"
        if not card.exists():
            continue
        values = json.loads(card.read_text()) | {report["benchmark"]: figures}
        card.write_text(json.dumps(values, indent=1) + "\n")
        words = card.with_suffix(".md")
        title = TITLES[report["benchmark"]]
        words.write_text(section(words.read_text(), title, rows(report["benchmark"], figures)))
        done.append(name)
    return done


@one_line("training.cards")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", help="what the benchmarks printed")
    parser.add_argument("--out", type=Path, default=Path("engines/models"))
    args = parser.parse_args(argv)
    for path in args.reports:
        print(path, *add(args.out, read_report(path)))


if __name__ == "__main__":
    main()
