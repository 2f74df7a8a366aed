"""The figures of an experiment as one JSON file, without any text of rows or answers, for a page that quotes them.

python examples/contamination/figures.py out/demonstrations docs/measured/demonstrations_lab_lm.json
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saft_hf.evaluate.bootstrap import Interval
from saft_hf.evaluate.config import without_demonstrations
from saft_hf.evaluate.results import Line, read_results
from saft_hf.evaluate.table import compared
from saft_hf.files import write_json


def bounds(interval: Interval | None) -> dict[str, float] | None:
    """Mean and ends of an interval."""
    if interval is None:
        return None
    return {name: round(getattr(interval, name), 4) for name in ("mean", "low", "high")}


def less(gap: Interval | None) -> dict[str, float] | None:
    """How much less the one has than the other: most arms are there to have less."""
    return None if gap is None else bounds(Interval(-gap.mean, -gap.high, -gap.low))


def line_of(line: Line) -> dict[str, Any]:
    """One arm on one pool."""
    e = line.evaluation
    return {
        "pool": line.pool,
        "share": line.share,
        "arm": line.name,
        "seeds": len(line.runs),
        "kept": line.mean("kept"),
        "demonstrations": without_demonstrations(line.arm)[1],
        "still_harmful": line.mean("still_harmful"),
        "harmful": {judge: bounds(found) for judge, found in e.harmful.items()},
        "over_refusal": bounds(e.refused),
        "rouge_l": bounds(e.rouge_l),
        "perplexity": e.perplexity,
        "incoherent": {kind: bounds(found) for kind, found in e.incoherent.items()},
    }


def main() -> None:
    """Read a folder, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the experiment, finished or not")
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    results = read_results(options.folder)
    config = results.record.config
    write_json(
        options.file,
        {
            "model": Path(config.model_name_or_path or "").name,
            "version": results.record.version,
            "rows": config.rows,
            "labelled_rows": config.labelled_rows,
            "training": config.training,
            "max_new_tokens": config.max_new_tokens,
            "questions": results.record.held_out,
            "judges": {name: asdict(accuracy) for name, accuracy in results.record.judges.items()},
            "lines": [line_of(line) for line in results.lines],
            "differences": [
                {
                    **{name: value for name, value in vars(one).items() if name != "gaps"},
                    "less": {name: less(gap) for name, gap in one.gaps.items()},
                }
                for one in compared(results)
            ],
        },
    )


if __name__ == "__main__":
    main()
