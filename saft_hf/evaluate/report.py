"""One HTML file with the table, the words and the plots; the table as CSV beside it. Every number is from the files."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from saft_hf.errors import SAFTInputError
from saft_hf.evaluate.judges import agreement
from saft_hf.evaluate.table import MARK, Results, read_results, table, verdicts
from saft_hf.files import replacing

REPORT, TABLE, PLOTS = "report.html", "table.csv", "plots"


def write_report(folder: Path) -> Path:
    """Write `report.html`, `table.csv` and the PNG files of `plots/`.

    Args:
        folder: of the experiment, finished or not.

    Returns:
        The HTML file, which needs no other.

    Raises:
        SAFTInputError: matplotlib is not installed.
    """
    try:
        from saft_hf.evaluate.plots import draw
    except ImportError as error:
        raise SAFTInputError(
            f"the plots need matplotlib ({error}): `pip install saft-hf[plots]`. The runs are kept."
        ) from error
    results = read_results(folder)
    heads, rows = table(results)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([heads, *rows])
    html = render(results, draw(results, folder / PLOTS))
    with replacing(folder / TABLE, folder / REPORT) as (table_file, report_file):
        table_file.write(buffer.getvalue().encode())
        report_file.write(html.encode())
    return folder / REPORT


def render(results: Results, plots: list[tuple[Path, str]]) -> str:
    """The report as HTML; all text is escaped.

    Args:
        results: of the experiment.
        plots: (PNG file, caption).
    """
    environment = Environment(
        loader=PackageLoader("saft_hf.evaluate", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    config = results.setting["config"]
    heads, rows = table(results)
    before = [""] + [line.pool + str(line.share) for line in results.lines]
    arms = [arm for arm in config["arms"] if arm != "untuned"]
    return environment.get_template("report.html.jinja").render(
        title="Does the filter make the tuned model safer?",
        config=config,
        version=results.setting["version"],
        held_out=results.setting["held_out"],
        judge=results.setting["trained_judge"],
        done=len(results.setting["runs"]),
        planned=len(arms) * len(config["pools"]) * len(config["shares"]) * len(config["seeds"]),
        verdicts=verdicts(results),
        mark=MARK,
        heads=heads,
        rows=[
            {"cells": row, "faint": bool(line.barely_trained), "first": line.pool + str(line.share) != last}
            for row, line, last in zip(rows, results.lines, before, strict=False)
        ],
        notes=[
            f"{line.pool} pool, {line.share:.0%} harmful, {line.arm}: {note}"
            for line in results.lines
            if line.pool
            for note in line.notes
        ],
        agreements=_agreements(results),
        plots=[{"data": base64.b64encode(path.read_bytes()).decode(), "caption": caption} for path, caption in plots],
        options=yaml.safe_dump(config, sort_keys=True),
    )


def _agreements(results: Results) -> dict[str, dict[str, float | None]]:
    """How far the judges agree on the answers of all models together."""
    models = [model["figures"]["harmful"] for line in results.lines for model in line.models]
    together = {
        judge: np.array([np.nan if v is None else v for one in models for v in one[judge]], dtype=np.float64)
        for judge in results.judges
    }
    return {pair: found for pair, found in agreement(together).items() if found["share"] is not None}
