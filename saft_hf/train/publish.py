"""What a tuned model brings to the Hub: a card that says what was filtered, its scorer, and the rows that are left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from saft_hf.distributed import World
from saft_hf.errors import SAFTError, SAFTHubError
from saft_hf.files import replacing
from saft_hf.hub import CARD, Repository, filtered_values, merge_cards, model_section, with_retries
from saft_hf.train.config import setting
from saft_hf.train.record import write_summary

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

# What `Trainer.push_to_hub` leaves out: `_saft/` has what tells of single rows.
_LEFT_OUT = ["_*", "checkpoint-*"]


class Publishing(_Trainer):  # type: ignore[misc] # transformers is not typed
    """The part of `SAFTSFTTrainer` that talks to the Hub; stands before SFTTrainer."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card, and what was filtered. Checkpoints write it too."""
        super().create_model_card(*args, **kwargs)
        if self._saft is not None and self.is_world_process_zero():
            card = Path(self.args.output_dir) / CARD
            summary = self._saft.summary
            section = model_section(filtered_values(summary, trained=True), summary.get("dataset_repo"))
            merged = merge_cards(card.read_text(encoding="utf-8"), section)
            # Such as what `EvaluationCallback` found.
            more = [getattr(callback, "card_section", str)() for callback in self.callback_handler.callbacks]
            with replacing(card) as (file,):
                file.write("".join([merged, *more]).encode())

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """TRL's `push_to_hub`, tried again where the network or the Hub fails in passing.

        With `saft_push_scorer` the scorer goes to `MODEL-saft-scorer` first, with `saft_push_dataset` the rows that
        are trained on to `MODEL-saft-rows`, both private unless `hub_private_repo` is false; the cards name each other.

        Args:
            commit_message: of the commit.
            blocking: wait until it is there. Otherwise what fails later is not tried again.
            token: by default `args.hub_token`, or the one that is logged in.
            revision: branch.
            kwargs: as for TRL's.

        Returns:
            What TRL's returns.

        Raises:
            SAFTHubError: the Hub refuses, or is not reached. Model and card are in `output_dir`.
        """
        token = token or self.args.hub_token
        if self._saft is not None and isinstance(name := kwargs.get("dataset_name"), str):
            source = {"dataset": name, "revision": None, "config": None, "split": None}
            self._saft.summary.setdefault("source", source)
        options = {"commit_message": commit_message, "blocking": blocking, "token": token, "revision": revision}
        if constants.HF_HUB_OFFLINE:
            self.save_model(_internal_call=True)
            self.create_model_card(**kwargs)
            raise self._not_pushed(SAFTHubError("HF_HUB_OFFLINE is set, so nothing was pushed: unset it"))
        world = World()
        with world.sync_errors("pushing scorer and rows"):
            if world.is_main and self._saft is not None:
                self._push_beside(token)
        where = Repository(self.hub_model_id or Path(self.args.output_dir).name, "model", revision, token)
        saved = False

        def push() -> Any:
            nonlocal saved
            if saved and self.hub_model_id is not None:
                # The other processes have saved their part, and are gone: only the upload is left.
                return where.api.upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=self.args.output_dir,
                    commit_message=commit_message,
                    revision=revision or getattr(self.args, "hub_revision", None),
                    ignore_patterns=_LEFT_OUT,
                )
            saved = True
            return super(Publishing, self).push_to_hub(**options, **kwargs)

        try:
            return with_retries(push, where)
        except SAFTHubError as error:
            raise self._not_pushed(error) from None

    def _not_pushed(self, error: SAFTError) -> SAFTError:
        folder = self.args.output_dir
        name = self.hub_model_id or Path(folder).name
        return type(error)(
            f"{error}. Model and card are kept in {folder}; push them again with `trainer.push_to_hub()`, or from a "
            f"shell: hf upload {name} {folder} --exclude '_*' --exclude 'checkpoint-*'"
        )

    def _push_beside(self, token: str | None) -> None:
        """Push scorer and rows, and note in summary and card where they are."""
        assert self._saft is not None  # noqa: S101 - for the type checker
        summary, scorer, result = self._saft.summary, self._saft.scorer, self._saft.result
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        options = {"private": self.args.hub_private_repo, "token": token}
        if setting(self.args, "saft_push_scorer") and scorer is not None:
            name = f"{self.hub_model_id}-saft-scorer"
            scorer.push_to_hub(name, **options)
            summary["scorer_repo"] = name
        if setting(self.args, "saft_push_dataset") and result is not None:
            name = f"{self.hub_model_id}-saft-rows"
            result.summary |= {key: summary[key] for key in ("scorer_repo", "source") if key in summary}
            result.push_to_hub(name, **options)
            summary["dataset_repo"] = name
        write_summary(summary, self.args.output_dir)
