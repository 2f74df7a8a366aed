"""What training starts with, and what is written down of it: files in `output_dir`, and digests in each checkpoint."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from datasets import Dataset
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from saft_hf.decide import AuditDigests, rows_digest
from saft_hf.decide.certify import Certificate
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.files import write_json
from saft_hf.hub import AUDIT
from saft_hf.records import from_plain, to_plain
from saft_hf.result import SUMMARY_FILE, FilterResult
from saft_hf.scorer import SAFTScorer
from saft_hf.summary import Demonstrations, Summary
from saft_hf.train.stream import StreamFilter

logger = logging.getLogger(__name__)

PRIVATE_FOLDER = "_saft"
"""Holds what tells of single rows, and paths. `Trainer.push_to_hub` uploads nothing whose name starts with `_`."""

ROWS_FILE = "saft_decisions.json"


@dataclass
class Record:
    """What training starts with.

    Attributes:
        dataset: the rows to train on, of the type that was given.
        outcome: of a dataset that was scored its result, else a summary.
        scorer: that the decisions come from.
        stream: of a stream that is filtered while the model trains.
        certificate: what fresh labels certify.
        eval_dataset: the rows to evaluate on, as they were given unless they were to be filtered.
        eval_results: name of a set -> what its scores say, where it was to be scored.
        demonstrations: the rows that are mixed in.
    """

    dataset: Any
    outcome: FilterResult | Summary
    scorer: SAFTScorer | None = None
    stream: StreamFilter | None = None
    certificate: Certificate | None = None
    eval_dataset: Any = None
    eval_results: dict[str, FilterResult] = field(default_factory=dict)
    demonstrations: Dataset | None = None

    @property
    def result(self) -> FilterResult | None:
        """Of a dataset that was scored."""
        return self.outcome if isinstance(self.outcome, FilterResult) else None

    @property
    def summary(self) -> Summary:
        """Counts and metrics; `filtered` says whether any decision was taken, and where none was, `undecided`."""
        return self.outcome.summary if isinstance(self.outcome, FilterResult) else self.outcome

    @property
    def scored(self) -> bool:
        """Whether there are scores; without them the rows are those that were given."""
        return any(part is not None for part in (self.result, self.scorer, self.stream))

    def tell(self, summary: Summary) -> None:
        """Replace the summary."""
        if isinstance(self.outcome, FilterResult):
            self.outcome.summary = summary
        else:
            self.outcome = summary

    def extend(self, **fields: Any) -> None:
        """Say more in the summary."""
        self.tell(replace(self.summary, **fields))

    def demonstrate(self, rows: Dataset, told: Demonstrations) -> None:
        """Note the demonstrations that are mixed in."""
        self.demonstrations = rows
        if self.result is not None:
            self.result.demonstrations = rows
        self.extend(demonstrations=told)

    def write(self, output_dir: str, on_error: str) -> TrainedRows:
        """Write audit, scorer, certificate and summary; one process does it.

        Returns:
            What checkpoints will say about the rows.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        private = Path(output_dir) / PRIVATE_FOLDER
        private.mkdir(parents=True, exist_ok=True)
        digests: AuditDigests | None = None
        if self.scorer is not None:
            self.scorer.save_pretrained(private / "scorer")
        if self.result is not None:
            digests = self.result.save_audit(private / AUDIT)
        for name, result in self.eval_results.items():
            result.save_audit(private / f"eval-{quote(name, safe='')}.parquet")
        if self.certificate is not None:
            write_json(private / "certificate.json", self.certificate.to_dict())
        write_summary(self.summary, output_dir)
        return TrainedRows(
            filtered=self.summary.filtered,
            rows=None if self.result is None else len(self.result.decisions),
            data=None if digests is None else digests.input_sha256,
            decisions=None if digests is None else digests.decisions_sha256,
            scorer=None if self.scorer is None else scorer_digest(self.scorer, whole=self.result is None),
            on_error=on_error,
            action=self.summary.action,
            demonstrations=None if self.demonstrations is None else rows_digest(self.demonstrations),
        )


@dataclass(frozen=True, kw_only=True)
class TrainedRows:
    """Which rows a run trains on, in digests: enough to tell whether another run trains on the same ones.

    By default those of a run that filters nothing.

    Attributes:
        filtered: whether any row could be left out.
        rows: how many rows came in; None for a stream.
        data: SHA-256 of the rows that came in; None for a stream.
        decisions: SHA-256 of what was decided for each row; None for a stream.
        scorer: SHA-256 of what makes the score; for a stream also of the threshold and the directions.
        on_error: what was done with rows without a score.
        action: what was done with removed rows.
        demonstrations: SHA-256 of the demonstrations that were mixed in; None without.
    """

    filtered: bool = False
    rows: int | None = None
    data: str | None = None
    decisions: str | None = None
    scorer: str | None = None
    on_error: str | None = None
    action: str = "remove"
    demonstrations: str | None = None

    @property
    def differ(self) -> bool:
        """Whether these may be other rows than came in."""
        return self.filtered or self.demonstrations is not None

    def save(self, checkpoint: Path) -> None:
        """Write the digests into a checkpoint's folder, which need not be there yet."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_json(checkpoint / ROWS_FILE, to_plain(self))

    @classmethod
    def load(cls, checkpoint: Path) -> TrainedRows | None:
        """The digests in a checkpoint; None where it has none.

        Raises:
            SAFTInputError: the file is damaged.
        """
        path = checkpoint / ROWS_FILE
        if not path.exists():
            return None
        try:
            return from_plain(cls, json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise SAFTInputError(f"{path} is damaged ({error}): take another checkpoint, or train again.") from error

    def check(self, checkpoint: Path) -> None:
        """Refuse to go on from a checkpoint that was trained on other rows.

        Raises:
            SAFTInputError: they differ, and the error says in what; nothing tells what rows it was trained on; or the
                checkpoint is not whole.
        """
        if not _is_whole(checkpoint):
            raise SAFTInputError(
                f"{checkpoint} is not whole: its {TRAINER_STATE_NAME} is missing or cut, since the run ended while it "
                "was written. Take an earlier checkpoint, or start again without `resume_from_checkpoint`."
            )
        then = TrainedRows.load(checkpoint)
        if then is None:
            if self.differ:
                raise SAFTInputError(
                    f"{checkpoint} has no {ROWS_FILE}, which says what rows it was trained on: it is of plain "
                    "SFTTrainer or of a run that filtered nothing (or the file was deleted), and this run filters. Go "
                    "on with `saft_enabled=False`, or start again without `resume_from_checkpoint`."
                )
            return
        before, now = asdict(then), asdict(self)
        differing = [name for name in before if before[name] != now[name]]
        if differing:
            shown = "; ".join(f"{name}: {before[name]} then, {now[name]} now" for name in differing)
            raise SAFTInputError(
                f"{checkpoint} was trained on other rows than this run would go on with ({shown}). Give the same data, "
                "labels and saft options as then, or start again without `resume_from_checkpoint`."
            )


def last_checkpoint(output_dir: str) -> Path | None:
    """The last whole checkpoint in a folder; the last one where none is whole."""
    folders = (path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir())
    found = {int(path.name.rpartition("-")[2]): path for path in folders if path.name.rpartition("-")[2].isdigit()}
    if not found:
        return None
    last = max(found)
    step = max((step for step, path in found.items() if _is_whole(path)), default=last)
    if step != last and World().is_main:
        logger.warning(
            "%s is not whole: the run ended while it was written. Going on from %s.", found[last], found[step]
        )
    return found[step]


def _is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written: the state of the trainer comes last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def write_summary(summary: Summary, output_dir: str) -> None:
    """Write the summary: `_saft/summary.json` has all of it, `saft_summary.json` what may be pushed with the model."""
    private = Path(output_dir) / PRIVATE_FOLDER
    private.mkdir(parents=True, exist_ok=True)
    write_json(private / "summary.json", summary.to_dict())
    write_json(Path(output_dir) / SUMMARY_FILE, summary.public().to_dict())


def scorer_digest(scorer: SAFTScorer, *, whole: bool) -> str:
    """SHA-256 of what makes a score; `whole`: with directions and threshold, to the last bit.

    Where the decisions themselves are compared, the whole would refuse a run for differences that change no row.
    """
    fit = scorer._fitted
    names = ["model_fingerprint", "template_digest", "score_layers", "score_readouts", "method", *["threshold"] * whole]
    digest = sha256(json.dumps({name: to_plain(getattr(fit, name)) for name in names}).encode())
    tensors = fit.to_parts()[1]
    for name in sorted(tensors) if whole else ():
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
