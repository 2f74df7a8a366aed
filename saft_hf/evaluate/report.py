"""One HTML file with the table, the words and the plots; the table as CSV beside it. Every number is from the files."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from saft_hf.evaluate.judges import Agreement, agreement
from saft_hf.evaluate.results import MARK, Results, read_results
from saft_hf.evaluate.table import CANNOT_TELL, differences, split_heads, table
from saft_hf.evaluate.verdicts import headline, verdicts
from saft_hf.files import replacing
from saft_hf.summary import public_name

REPORT, TABLE, PLOTS = "report.html", "table.csv", "plots"


def write_report(folder: Path) -> Path:
    """Write `report.html`, `table.csv` and the PNG files of `plots/`.

    Args:
        folder: of the experiment, finished or not.

    Returns:
        The HTML file, which needs no other.
    """
    from saft_hf.evaluate.plots import draw  # matplotlib: its absence was said before the runs

    results = read_results(folder)
    heads, rows = table(results)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([heads, *rows])
    html = to_html(results, draw(results, folder / PLOTS))
    with replacing(folder / TABLE, folder / REPORT) as (table_file, report_file):
        table_file.write(buffer.getvalue().encode())
        report_file.write(html.encode())
    return folder / REPORT


def to_html(results: Results, plots: list[tuple[Path, str]]) -> str:
    """The report as HTML; all text is escaped.

    Args:
        results: of the experiment.
        plots: (PNG file, caption).
    """
    environment = Environment(
        loader=PackageLoader("saft_hf.evaluate", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    record = results.record
    config = record.config
    heads, rows = table(results)
    before = ["", *(line.title for line in results.lines)]
    # Two tables: one would be wider than a screen, and what a filter chose would lie outside.
    tables = [[heads.index(head) for head in part] for part in split_heads(heads)]
    return environment.get_template("report.html.jinja").render(
        title="Does the filter make the tuned model safer?",
        headline=headline(results),
        model=_public(config.model_name_or_path),
        config=config,
        version=record.version,
        held_out=record.held_out,
        judges=record.judges,
        done=len(record.runs),
        planned=len(config.seeds) * sum(len(config.arms_on(pool)) for pool, _ in config.conditions),
        verdicts=verdicts(results),
        judged_by=results.best_judge,
        mark=MARK,
        cannot_tell=CANNOT_TELL,
        differences=differences(results),
        tables=[
            {
                "heads": [heads[column] for column in columns],
                "rows": [
                    {
                        "cells": [row[column] for column in columns],
                        "faint": bool(line.barely_trained),
                        "first": line.title != last,
                    }
                    for row, line, last in zip(rows, results.lines, before, strict=False)
                ],
            }
            for columns in tables
        ],
        notes=[f"{line.title}, {line.name}: {note}" for line in results.lines if line.pool for note in line.notes],
        agreements=_agreements(results),
        plots=[{"data": base64.b64encode(path.read_bytes()).decode(), "caption": caption} for path, caption in plots],
        options=yaml.safe_dump(_public(asdict(config)), sort_keys=True),
    )


def _public(value: Any) -> Any:
    """Options as others may see them: of folders and files on this machine the last name alone."""
    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    is_path = isinstance(value, str) and "/" in value and public_name(value) is None
    return Path(value).name if is_path else value


def _agreements(results: Results) -> dict[str, Agreement]:
    """How far the judges agree on the answers of all models together."""
    models = [model.metrics.harmful for line in results.lines for model in line.models]
    together = {
        judge: np.array([verdict for one in models for verdict in one[judge]], dtype=np.float64)
        for judge in results.judges
    }
    return {pair: agreed for pair, agreed in agreement(together).items() if agreed.share is not None}
