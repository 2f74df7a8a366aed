"""`saft-hf score`: add `saft_score` and `saft_status` to a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from saft_hf.cli.arguments import parse
from saft_hf.cli.data import load_pool_and_labels
from saft_hf.cli.pipeline import SCORER, fit_lines, fitted_scorer, output_folder, print_table
from saft_hf.embed.world import World
from saft_hf.result import save_rows
from saft_hf.scorer import STATUS


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, score every row, save dataset and scorer."""
    arguments = parse("score", argv)
    output = arguments[3]
    folder = output_folder(output)
    world = World()
    pool, labelled = load_pool_and_labels(arguments[1])
    scorer = fitted_scorer(arguments, pool, labelled)
    scored = scorer.score_dataset(pool)
    with world.together("saving"):
        if not world.is_main:
            return
        scorer.save_pretrained(folder / SCORER)
        target = save_rows(scored, folder / "scored", output.output_format)  # type: ignore[arg-type] # checked above
        print_table(
            {
                **fit_lines(scorer),
                "rows": len(scored),
                "statuses": dict(Counter(scored[STATUS])),
                "dataset": target,
                "scorer": folder / SCORER,
            }
        )
