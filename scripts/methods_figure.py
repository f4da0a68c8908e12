"""Quality against cost of the methods in a Markdown table of `benchmarks/methods.py`, as a picture.

    python scripts/methods_figure.py docs/methods.md docs/images/methods.png

Reads the first table with a column ``+ CRF``: a circle is the refined CAM's score, the triangle above it that after the CRF.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

from pipelines.evaluation.figures import save_figure


def rows_of(text: str) -> list[tuple[str, float, float, float]]:
    """Method, CPU seconds a photo, mIoU refined and after the CRF, row by row."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("| method") and "+ CRF" in line:
            break
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        name, _, refined, crf, _, cost = (cell.strip(" *") for cell in line.strip("|").split("|"))
        scores = (float(re.findall(r"[\d.]+", cell)[0]) for cell in (refined, crf))
        found.append((name.replace("`", ""), sum(float(part) for part in cost.split("+")), *scores))
    return found


def main() -> None:
    """Draw the figure."""
    table, path = (Path(argument) for argument in sys.argv[1:])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, seconds, refined, crf in rows_of(table.read_text(encoding="utf-8")):
        colour = "tab:orange" if "ssr" in name else "tab:blue"
        axis.plot([seconds, seconds], [refined, crf], color=colour, linewidth=0.8)
        axis.plot(seconds, refined, "o", color=colour, markersize=4)
        axis.plot(seconds, crf, "^", color=colour, markersize=5)
        axis.annotate(name, (seconds, crf), xytext=(3, 3), textcoords="offset points", fontsize=8, rotation=30)
    axis.set(xlabel="CPU seconds a photo, CRF not counted", ylabel="mIoU, %: refined CAM (circle), + CRF (triangle)")
    axis.margins(x=0.15, y=0.15)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
