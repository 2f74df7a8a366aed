"""What a tuned model brings to the Hub: a card that says what was filtered, its scorer, and the rows that are left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from saft_hf.distributed import World
from saft_hf.errors import SAFTError, SAFTHubError
from saft_hf.files import replacing
from saft_hf.hub import CARD, Repository, merge_cards, model_section, with_retries
from saft_hf.summary import Summary
from saft_hf.train.config import setting
from saft_hf.train.record import Record, write_summary

# What `Trainer.push_to_hub` leaves out: `_saft/` has what tells of single rows.
_LEFT_OUT = ["_*", "checkpoint-*"]


def extend_card(output_dir: str, summary: Summary) -> None:
    """Put what was filtered into the card that TRL wrote."""
    card = Path(output_dir) / CARD
    merged = merge_cards(card.read_text(encoding="utf-8"), model_section(summary))
    with replacing(card) as (file,):
        file.write(merged.encode())


def push(trainer: Any, record: Record | None, upload: Callable[[], Any], card: dict[str, Any], **to: Any) -> Any:
    """Push scorer and rows, where that was asked for, and then the model. Collective.

    Args:
        trainer: whose model it is.
        record: what it was trained on; None where the filter is off.
        upload: TRL's `push_to_hub`, with its arguments.
        card: of those, the ones that are for the card.
        to: of those, `token`, `revision` and `commit_message`.
    """
    folder = trainer.args.output_dir
    if constants.HF_HUB_OFFLINE:
        trainer.save_model(_internal_call=True)
        trainer.create_model_card(**card)
        raise _not_pushed(trainer, SAFTHubError("HF_HUB_OFFLINE is set, so nothing was pushed: unset it"))
    world = World()
    with world.sync_errors("pushing scorer and rows"):
        if world.is_main and record is not None:
            _push_beside(trainer, record, to["token"])
    where = Repository(trainer.hub_model_id or Path(folder).name, "model", to["revision"], to["token"])
    saved = False

    def attempt() -> Any:
        nonlocal saved
        if saved and trainer.hub_model_id is not None:
            # The other processes have saved their part, and are gone: only the upload is left.
            return where.api.upload_folder(
                repo_id=trainer.hub_model_id,
                folder_path=folder,
                commit_message=to["commit_message"],
                revision=to["revision"] or getattr(trainer.args, "hub_revision", None),
                ignore_patterns=_LEFT_OUT,
            )
        saved = True
        return upload()

    try:
        return with_retries(attempt, where)
    except SAFTHubError as error:
        raise _not_pushed(trainer, error) from None


def _not_pushed(trainer: Any, error: SAFTError) -> SAFTError:
    folder = trainer.args.output_dir
    name = trainer.hub_model_id or Path(folder).name
    return type(error)(
        f"{error}. Model and card are kept in {folder}; push them again with `trainer.push_to_hub()`, or from a "
        f"shell: hf upload {name} {folder} --exclude '_*' --exclude 'checkpoint-*'"
    )


def _push_beside(trainer: Any, record: Record, token: str | None) -> None:
    """Push scorer and rows, and note in the summary, which the cards are made from, where they are."""
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token)
    options = {"private": trainer.args.hub_private_repo, "token": token}
    if setting(trainer.args, "saft_push_scorer") and record.scorer is not None:
        name = f"{trainer.hub_model_id}-saft-scorer"
        record.scorer.push_to_hub(name, **options)
        record.extend(scorer_repo=name)
    if setting(trainer.args, "saft_push_dataset") and record.result is not None:
        name = f"{trainer.hub_model_id}-saft-rows"
        record.result.push_to_hub(name, **options)
        record.extend(dataset_repo=name)
    write_summary(record.summary, trainer.args.output_dir)
