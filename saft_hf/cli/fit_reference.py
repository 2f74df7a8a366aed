"""`saft-hf fit-reference`: a probe from labelled rows of other sources, once for a model and for any pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from saft_hf.cli.arguments import parse
from saft_hf.cli.pipeline import check_pushes, destinations, options_of, output_folder, push_scorer
from saft_hf.cli.table import print_next, print_summary
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.scorer import SAFTScorer


def run(argv: Sequence[str]) -> None:
    """Fit, save and push a probe.

    Raises:
        SAFTInputError: no model is named, or a source cannot be read.
    """
    args = parse("fit-reference", argv)
    model = args.model_name_or_path
    if model is None:
        raise SAFTInputError("`--model_name_or_path` is needed: the model that will be tuned.")
    args = replace(args, push_to_hub=None, hub_scorer=args.push_to_hub)
    folder = output_folder(args)
    check_pushes(*destinations(args))
    scorer = SAFTScorer(model, revision=args.model_revision, **options_of(args, "scorer"))
    scorer.fit_reference()

    def save() -> None:
        scorer.save_pretrained(folder)
        print_summary(scorer.summary_, probe=folder)

    def push() -> None:
        push_scorer(scorer, args)
        print_next("fit-reference", args, model)

    World().on_main("saving", save)
    World().on_main("pushing", push)
