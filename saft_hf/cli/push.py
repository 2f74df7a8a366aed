"""`saft-hf push`: push what could not be pushed; the message of the failed push has the words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from saft_hf.cli.arguments import parse
from saft_hf.errors import SAFTInputError
from saft_hf.hub import AUDIT, CARD, Destination, is_public, push_folder
from saft_hf.scorer.artifact import TENSORS_FILE


def run(argv: Sequence[str]) -> None:
    """Push a folder with its card.

    Raises:
        SAFTInputError: folder or repository is not named, or the folder may not be pushed there.
    """
    args = parse("push", argv)
    if not (args.folder and args.push_to_hub):
        raise SAFTInputError("`--folder` and `--push_to_hub` are needed: what to push, and where to.")
    if args.hub_repo_type not in ("dataset", "model"):
        raise SAFTInputError(f"`--hub_repo_type` must be 'dataset' or 'model', not {args.hub_repo_type!r}.")
    folder = Path(args.folder)
    if not (folder / CARD).is_file():
        raise SAFTInputError(f"there is no folder {folder} with a card ({CARD}) in it.")
    if (folder / AUDIT).is_file():
        raise SAFTInputError(
            f"{folder} is what `saft-hf filter` wrote for this machine: it may hold rows that were removed. Push with "
            "`saft-hf filter ... --push_to_hub`."
        )
    to = Destination(
        args.push_to_hub,
        args.hub_repo_type,
        args.hub_revision,
        private=args.hub_private,
        create_pr=args.hub_create_pr,
        audit=args.hub_include_indices,
    )
    scorers = list(folder.rglob(TENSORS_FILE))  # a saved result may hold one
    public = bool(scorers) and is_public(to)
    for tensors in scorers if public else ():
        with safe_open(tensors, framework="numpy") as file:
            if "labelled" in file.keys() and file.get_slice("labelled").get_shape()[0]:  # noqa: SIM118 - not a dict
                raise SAFTInputError(
                    f"{tensors.parent} holds a scorer with digests of the rows that people labelled, and {to} is "
                    "public: push it with `SAFTScorer.push_to_hub`, which leaves them out, or to a private repository."
                )
    print(f"Pushed to {push_folder(folder, to)}.")
