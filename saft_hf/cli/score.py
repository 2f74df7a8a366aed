"""`saft-hf score`: add `saft_score` and `saft_status` to a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from datasets import Dataset

from saft_hf.cli.arguments import Arguments, parse
from saft_hf.cli.data import load_pool_and_labels, source_of
from saft_hf.cli.pipeline import SCORER, fit_lines, fitted_scorer, output_folder, print_table, push_scorer
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.hub import Destination, push_scored
from saft_hf.result import save_rows
from saft_hf.scorer import SCORE, STATUS, SAFTScorer


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, score every row, save dataset and scorer."""
    arguments = parse("score", argv)
    output = arguments[3]
    folder = output_folder(output)
    if output.push_to_hub and output.hub_private is False:
        raise SAFTInputError(
            "scored rows hold those that may be harmful, and say which they are: they go to a private repository only. "
            "Leave `--hub_private` out, or push what `saft-hf filter` keeps."
        )
    world = World()
    pool, labelled = load_pool_and_labels(arguments[1])
    scorer = fitted_scorer(arguments, pool, labelled)
    scored = scorer.score_dataset(pool)
    with world.sync_errors("saving"):
        if world.is_main:
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
    with world.sync_errors("pushing"):
        if world.is_main:
            _push(scored, scorer, arguments)


def _push(scored: Dataset, scorer: SAFTScorer, arguments: Arguments) -> None:
    """Push what was scored, and the scorer, where that is asked for."""
    _, dataset, _, output = arguments
    statuses = dict(Counter(scored[STATUS]))
    summary = replace(scorer.summary_, rows=len(scored), statuses=statuses, source=source_of(dataset))
    summary = push_scorer(scorer, output, summary)
    if output.push_to_hub:
        to = Destination(
            output.push_to_hub, "dataset", output.hub_revision, private=True, create_pr=output.hub_create_pr
        )
        print(f"Pushed to {push_scored(scored, to, dataset.dataset_train_split, scored[SCORE][:], summary)}.")
