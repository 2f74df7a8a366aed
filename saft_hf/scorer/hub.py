"""A scorer on the Hub: pushed with its card, and fetched by its name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, constants, snapshot_download

from saft_hf.hub import CARD, Destination, Repository, push_files, with_retries
from saft_hf.hub.push import is_public
from saft_hf.scorer.artifact import CONFIG_FILE, TENSORS_FILE
from saft_hf.scorer.card import public_name
from saft_hf.scorer.fitted import Fitted, LabelledRows

_FETCH_SECONDS = 30.0


class HubMixin:
    """What a scorer can do with the Hub beside `from_pretrained`."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Push the fitted scorer: `config.json`, `saft_scorer.safetensors` and a card. The model is not pushed.

        The card is merged into one that stands, pushing the same again makes no commit, and what a failed push left
        out is kept on this machine. A folder on this machine is not named: who fetches the scorer passes `model=`. To
        a public repository it goes without the digests of the rows that people labelled; it then scores as before, and
        no longer decides those rows by their labels.

        Args:
            repo_id: `user/name`, made where it is missing.
            private: None: a new repository is private, one that stands stays what it is. True: it must be private.
                False: a new one is public.
            revision: branch; made where it is missing.
            token: by default the one that is logged in.
            commit_message: of the commit.
            create_pr: open a pull request instead.

        Returns:
            The commit; with `create_pr` also the pull request.

        Raises:
            SAFTInputError: the scorer is not fitted, or the repository is public and must be private.
            SAFTHubError: the Hub refuses, or is not reached. The message says where the files are and how to push them.

        Example:
            >>> scorer.push_to_hub("me/llama-2-saft")  # doctest: +SKIP
        """
        scorer: Any = self
        fitted: Fitted = replace(scorer._fitted, model=public_name(scorer._fitted))
        to = Destination(repo_id, "model", revision, token, private, commit_message, create_pr)
        if is_public(to):
            nobody = LabelledRows(fitted.labelled.identities[:0], fitted.labelled.harmful[:0])
            fitted = replace(fitted, labelled=nobody)
        return push_files(lambda folder: scorer._save(folder, fitted, repo_id), to)


def fetched(name_or_path: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a saved scorer: itself, or where the Hub's copy lies on this machine.

    Only the scorer's own files are fetched, whatever else the repository holds.

    Args:
        name_or_path: a folder, or a Hub id.
        revision: commit, branch or tag.
        token: by default the one that is logged in.

    Raises:
        SAFTHubError: there is no such repository or revision, no access to it, or no way to the Hub.
    """
    path = Path(name_or_path)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)) or path.parts[0] in (".", ".."):
        return path
    where = Repository(str(name_or_path), "model", revision, token)
    files = [CONFIG_FILE, TENSORS_FILE, CARD]

    def fetch() -> str:
        return snapshot_download(
            where.repo_id,
            revision=revision,
            token=token,
            allow_patterns=files,
            local_files_only=constants.HF_HUB_OFFLINE,
        )

    return Path(with_retries(fetch, where, seconds=_FETCH_SECONDS))
