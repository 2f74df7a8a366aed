"""`saft-hf certify`: what fresh labels say about the rows that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saft_hf.cli.arguments import parse
from saft_hf.cli.data import labels_in
from saft_hf.cli.pipeline import columns_of, input_of, load_and_fit, output_folder
from saft_hf.cli.table import print_next, print_summary
from saft_hf.decide.marks import is_marks_file
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.files import write_json
from saft_hf.result import RESULT, SCORER, saving

CERTIFICATE_FILE = "certificate.json"
_NAMES = (CERTIFICATE_FILE, *RESULT, SCORER)


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, certify, save the certificate, the rows that it certifies and a scorer that keeps them.

    Raises:
        SAFTInputError: no fresh labels are named.
    """
    args = parse("certify", argv)
    if args.fresh_labels is None:
        raise SAFTInputError("`--fresh_labels` is needed: labelled rows that the scorer was not fitted on.")
    alpha = _alpha(args.alpha)
    # The labels may lie there already: where none of our names is taken, nothing is replaced.
    names = [name for name in _NAMES if args.output_dir and (Path(args.output_dir) / name).exists()]
    folder = output_folder(args, names)
    fresh = None
    if not is_marks_file(Path(args.fresh_labels)):
        fresh = labels_in(args.fresh_labels, args.dataset_train_split, columns_of(args))
    fitted = load_and_fit(args, read=("label_column", "harmful_value", "threshold"))
    if fresh is None:
        fresh = labels_in(args.fresh_labels, args.dataset_train_split, pool=fitted.pool, certify=True)
    scorer = fitted.scorer
    certificate = scorer.certify(
        fitted.pool,
        fresh,
        alpha=alpha,
        delta=args.delta,
        looks=args.looks,
        threshold=args.threshold if args.scorer else None,
        label_column=args.label_column,
        harmful_value=args.harmful_value,
        stratify_by=args.stratify_by,
        on_error=args.on_error,  # type: ignore[arg-type] # certify says what it takes
    )
    result = None
    if certificate.issued:
        result = scorer.filter(fitted.pool, certificate=certificate, on_error=args.on_error)  # type: ignore[arg-type]
        result.summary = replace(
            result.summary, **input_of(result.summary, fitted.rows, args.seed if args.labelled_rows else None)
        )

    def save() -> None:
        written = _NAMES if result else (CERTIFICATE_FILE, SCORER)
        with saving(folder, written, args.output_format, overwrite=args.overwrite or not names) as draft:
            write_json(draft / CERTIFICATE_FILE, certificate.to_dict())
            (scorer.certified(certificate) if result else scorer).save_pretrained(draft / SCORER)
            if result:
                result.write(draft, args.output_format)  # type: ignore[arg-type] # checked
        if result:
            print_summary(result.summary, files=folder)
            print(f"The rows in {folder} and the threshold of the scorer there are the certified ones.\n")
        else:
            print_summary(scorer.summary_, files=folder)
            print("Nothing is certified: no rows are written.\n")
        print(certificate.says())
        if result:
            print_next("certify", args, str(scorer.model))

    World().on_main("saving", save)


def _alpha(text: str) -> float | dict[str, float]:
    """Read `0.05`, or `refusal=0.2,other=0.05`.

    Raises:
        SAFTInputError: it is neither.
    """
    text = str(text)  # YAML has numbers
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.rpartition("=") for part in text.split(",")]
        shares = {name.strip(): float(share) for name, _, share in pairs}
        if len(shares) < len(pairs) or "" in shares:
            raise ValueError("a value is missing, or named twice")
    except ValueError as error:
        raise SAFTInputError(
            f"`--alpha` must be a share such as 0.05, or one for each value of `--stratify_by`, such as "
            f"refusal=0.2,other=0.05; found {text!r} ({error})."
        ) from error
    return shares
