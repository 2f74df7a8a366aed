"""`saft-hf push`: push what could not be pushed; the message of the failed push has the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from trl import TrlParser

from saft_hf.cli.arguments import HubArguments, parsed
from saft_hf.errors import SAFTInputError
from saft_hf.hub import CARD, Destination, push_folder
from saft_hf.hub.push import is_public
from saft_hf.scorer.artifact import TENSORS_FILE


@dataclass
class PushArguments(HubArguments):
    """The folder, and what it becomes."""

    folder: str | None = field(default=None, metadata={"help": "Folder that a failed push kept."})
    hub_repo_type: str = field(default="dataset", metadata={"help": "`dataset` or `model`."})


def run(argv: Sequence[str]) -> None:
    """Push a folder with its card."""
    parser = TrlParser(PushArguments, prog="saft-hf push")
    [arguments] = parsed(parser, "push", argv)
    if not (arguments.folder and arguments.push_to_hub):
        raise SAFTInputError("`--folder` and `--push_to_hub` are needed: what to push, and where to.")
    if arguments.hub_repo_type not in ("dataset", "model"):
        raise SAFTInputError(f"`--hub_repo_type` must be 'dataset' or 'model', not {arguments.hub_repo_type!r}.")
    folder = Path(arguments.folder)
    if not (folder / CARD).is_file():
        raise SAFTInputError(f"there is no folder {folder} with a card ({CARD}) in it.")
    to = Destination(
        arguments.push_to_hub,
        arguments.hub_repo_type,
        arguments.hub_revision,
        private=arguments.hub_private,
        create_pr=arguments.hub_create_pr,
        audit=arguments.hub_include_indices,
    )
    tensors = folder / TENSORS_FILE
    if tensors.is_file() and is_public(to):
        with safe_open(tensors, framework="numpy") as file:
            if "labelled" in file.keys() and file.get_slice("labelled").get_shape()[0]:  # noqa: SIM118 - not a dict
                raise SAFTInputError(
                    f"{folder} holds a scorer with digests of the rows that people labelled, and {to} is public: push "
                    "it with `SAFTScorer.push_to_hub`, which leaves them out, or to a private repository."
                )
    print(f"Pushed to {push_folder(folder, to)}.")
