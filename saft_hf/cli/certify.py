"""`saft-hf certify`: what fresh labels say about the rows that are kept."""

from __future__ import annotations

from collections.abc import Sequence

from saft_hf.cli.arguments import parse
from saft_hf.cli.data import NamedDataset
from saft_hf.cli.pipeline import load_and_fit, output_folder, print_summary
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.files import write_json
from saft_hf.result import SCORER

CERTIFICATE_FILE = "certificate.json"


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, certify, save certificate and scorer.

    Raises:
        SAFTInputError: no fresh labels are named.
    """
    args = parse("certify", argv)
    if args.fresh_labels is None:
        raise SAFTInputError("`--fresh_labels` is needed: labelled rows that the scorer was not fitted on.")
    folder = output_folder(args)
    fresh = NamedDataset(args.fresh_labels, args.dataset_train_split).load()
    fitted = load_and_fit(args, read=("label_column", "harmful_value"))
    certificate = fitted.scorer.certify(
        fitted.pool,
        fresh,
        alpha=args.alpha,
        delta=args.delta,
        label_column=args.label_column,
        harmful_value=args.harmful_value,
        stratify_by=args.stratify_by,
        on_error=args.on_error,  # type: ignore[arg-type] # certify says what it takes
    )

    def save() -> None:
        write_json(folder / CERTIFICATE_FILE, certificate.to_dict())
        fitted.scorer.save_pretrained(folder / SCORER)
        print_summary(fitted.scorer.summary_, files=folder)
        print(certificate.says())

    World().on_main("saving", save)
