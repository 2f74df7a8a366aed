"""`saft-hf certify`: what fresh labels say about the rows that are kept."""

from __future__ import annotations

from collections.abc import Sequence

from saft_hf.cli.arguments import CertifyArguments, parse_with
from saft_hf.cli.data import load_pool_and_labels, load_rows
from saft_hf.cli.pipeline import SCORER, fit_lines, fitted_scorer, output_folder, print_table
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.files import write_json

CERTIFICATE_FILE = "certificate.json"


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, certify, save certificate and scorer.

    Raises:
        SAFTInputError: no fresh labels are named.
    """
    arguments, own = parse_with("certify", argv, CertifyArguments)
    _, dataset, options, output = arguments
    if own.fresh_labels is None:
        raise SAFTInputError("`--fresh_labels` is needed: labelled rows that the scorer was not fitted on.")
    folder = output_folder(output)
    world = World()
    pool, labelled = load_pool_and_labels(dataset)
    fresh = load_rows(own.fresh_labels, split=dataset.dataset_train_split)
    scorer = fitted_scorer(arguments, pool, labelled)
    found = scorer.certify(
        pool,
        fresh,
        alpha=own.alpha,
        delta=own.delta,
        label_column=dataset.label_column,
        harmful_value=dataset.harmful_value,
        stratify_by=own.stratify_by,
        on_error="keep" if options.on_error == "keep" else "exclude",
    )
    with world.sync_errors("saving"):
        if not world.is_main:
            return
        write_json(folder / CERTIFICATE_FILE, found.to_dict())
        scorer.save_pretrained(folder / SCORER)
        print_table({**fit_lines(scorer), "files": folder})
        print(found.says())
