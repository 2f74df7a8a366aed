"""`saft-hf score`: add `saft_score` and `saft_status` to a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from saft_hf.cli.arguments import parse
from saft_hf.cli.pipeline import check_pushes, destinations, load_and_fit, output_folder, push_scorer
from saft_hf.cli.table import print_next, print_summary
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.hub import Destination, push_scored
from saft_hf.result import SCORER, save_rows, saving
from saft_hf.scorer import SCORE, STATUS


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, score every row, save dataset and scorer.

    Raises:
        SAFTInputError: scored rows are to go to a public repository.
    """
    args = parse("score", argv)
    names = ("scored", SCORER)
    folder = output_folder(args, names)
    if args.push_to_hub and args.hub_private is False:
        raise SAFTInputError(
            "scored rows hold those that may be harmful, and say which they are: they go to a private repository only. "
            "Leave `--hub_private` out, or push what `saft-hf filter` keeps."
        )
    check_pushes(*(replace(to, private=to.private or to.repo_type == "dataset") for to in destinations(args)))
    fitted = load_and_fit(args, keep_scores=True)
    scorer, scored = fitted.scorer, fitted.scorer.score_dataset(fitted.pool)
    statuses = dict(Counter(scored[STATUS]))
    summary = replace(scorer.summary_, rows=len(scored), statuses=statuses, source=fitted.rows.source)

    def save() -> None:
        with saving(folder, names, args.output_format, overwrite=args.overwrite) as draft:
            scorer.save_pretrained(draft / SCORER)
            save_rows(scored, draft / "scored", args.output_format)  # type: ignore[arg-type] # checked
        print_summary(summary, dataset=folder / "scored", scorer=folder / SCORER)
        print_next("score", args, str(scorer.model))

    def push() -> None:
        push_scorer(scorer, args)
        if args.push_to_hub:
            to = Destination(args.push_to_hub, "dataset", args.hub_revision, private=True, create_pr=args.hub_create_pr)
            shown = replace(summary, scorer_repo=args.hub_scorer)
            print(f"Pushed to {push_scored(scored, to, args.dataset_train_split, scored[SCORE][:], shown)}.")

    World().on_main("saving", save)
    World().on_main("pushing", push)
