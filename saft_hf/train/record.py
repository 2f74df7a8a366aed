"""What is written down: files in `output_dir`, and in each checkpoint what its rows were."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
from transformers.trainer_utils import get_last_checkpoint

from saft_hf.errors import SAFTInputError
from saft_hf.files import replacing
from saft_hf.result import AUDIT_FILE, SUMMARY_FILE
from saft_hf.scorer import SAFTScorer
from saft_hf.train.request import Filtered

PRIVATE_FOLDER = "_saft"
"""Holds what tells of single rows. `Trainer.push_to_hub` uploads nothing whose name starts with `_`."""

RECORD_FILE = "saft_decisions.json"


@dataclass(frozen=True)
class Record:
    """Which rows a run trains on, in digests: enough to tell whether another run trains on the same ones.

    Attributes:
        filtered: whether any row could be left out.
        rows: how many rows came in; None for a stream.
        data: SHA-256 of the rows that came in; None for a stream.
        decisions: SHA-256 of what was decided for each row; None for a stream.
        scorer: SHA-256 of what makes the score; for a stream also of the threshold and the directions.
        on_error: what was done with rows without a score.
    """

    filtered: bool = False
    rows: int | None = None
    data: str | None = None
    decisions: str | None = None
    scorer: str | None = None
    on_error: str | None = None

    def save(self, checkpoint: Path) -> None:
        """Write the record into a checkpoint."""
        write_json(checkpoint / RECORD_FILE, asdict(self))

    @classmethod
    def load(cls, checkpoint: Path) -> Record:
        """The record of a checkpoint; without one, nothing was filtered.

        Raises:
            SAFTInputError: the file is damaged.
        """
        path = checkpoint / RECORD_FILE
        if not path.exists():
            return cls()
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise SAFTInputError(f"{path} is damaged ({error}): take another checkpoint, or train again.") from error

    def check(self, checkpoint: Path) -> None:
        """Refuse to go on from a checkpoint that was trained on other rows.

        Raises:
            SAFTInputError: they differ; the error says in what.
        """
        then = Record.load(checkpoint)
        if not (then.filtered or self.filtered):  # TRL's own affair
            return
        before, now = asdict(then), asdict(self)
        differing = [name for name in before if before[name] != now[name]]
        if differing:
            shown = "; ".join(f"{name}: {before[name]} then, {now[name]} now" for name in differing)
            raise SAFTInputError(
                f"{checkpoint} was trained on other rows than this run would go on with ({shown}). Give the same data, "
                "labels and saft options as then, or start again without `resume_from_checkpoint`."
            )


def checkpoint_folder(resume_from_checkpoint: Any, output_dir: str) -> Path | None:
    """The checkpoint that `Trainer.train` goes on from, if any."""
    if resume_from_checkpoint is True:
        resume_from_checkpoint = get_last_checkpoint(output_dir)
    return Path(resume_from_checkpoint) if resume_from_checkpoint else None


def write_results(done: Filtered, output_dir: str, on_error: str) -> Record:
    """Write audit, scorer and summary; one process does it.

    Returns:
        What checkpoints will say about the rows.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    private = Path(output_dir) / PRIVATE_FOLDER
    private.mkdir(parents=True, exist_ok=True)
    if done.scorer is not None:
        done.scorer.save_pretrained(private / "scorer")
    data = decisions = None
    if done.result is not None:
        done.result.save_audit(private / AUDIT_FILE)
        digests = pq.read_table(private / AUDIT_FILE, columns=["sha256"])["sha256"]
        data = sha256("".join(digests.to_pylist()).encode()).hexdigest()
        codes = done.result.decisions
        decisions = sha256(codes.codes.tobytes() + bytes([codes.train_on_errored])).hexdigest()
    for name, result in done.eval_results.items():
        result.save_audit(private / f"eval-{quote(name, safe='')}.parquet")
    if (certificate := done.summary.get("certificate")) is not None:
        write_json(private / "certificate.json", certificate)
    write_summary(done.summary, output_dir)
    return Record(
        filtered=bool(done.summary["filtered"]),
        rows=None if done.result is None else len(done.result.decisions),
        data=data,
        decisions=decisions,
        scorer=None if done.scorer is None else scorer_digest(done.scorer, whole=done.result is None),
        on_error=on_error,
    )


def write_summary(summary: dict[str, Any], output_dir: str) -> None:
    """Write `saft_summary.json`: counts, thresholds, versions; nothing about a single row."""
    write_json(Path(output_dir) / SUMMARY_FILE, summary)


def scorer_digest(scorer: SAFTScorer, *, whole: bool) -> str:
    """SHA-256 of what makes a score.

    Args:
        scorer: fitted.
        whole: with directions and threshold, to the last bit. Where the decisions themselves are compared that would
            refuse a run for differences that change no row.
    """
    config, tensors = scorer.fitted_.to_parts() if scorer.fitted_ else ({}, {})
    names = ["model_fingerprint", "template_digest", "layers", "readouts", "method", *(["threshold"] * whole)]
    digest = sha256(json.dumps({name: config.get(name) for name in names}).encode())
    for name in sorted(tensors) if whole else ():
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file: the whole of it, or nothing."""
    with replacing(path) as (file,):
        file.write((json.dumps(content, indent=2, sort_keys=True, default=str) + "\n").encode())
