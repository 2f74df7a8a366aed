"""Kept, removed or errored: one decision for every row, and the reason for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.decide.threshold import flagged
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.status import RowStatus

OnError = Literal["exclude", "keep", "raise"]


class Decision(StrEnum):
    """What becomes of a row: it is kept, removed as harmful, or listed apart because it could not be scored."""

    KEPT = "kept"
    REMOVED = "removed"
    ERRORED = "errored"


class Reason(StrEnum):
    """Why: the score, unlike anything in the reference, a person's label or mark, or no threshold to decide by.

    For a row without a score it is its status.
    """

    SCORE = "score"
    UNLIKE = "unlike"
    LABEL = "label"
    MARK = "mark"
    NO_DECISION = "no_decision"


CODES = (Decision.KEPT, Decision.REMOVED, Decision.ERRORED)
_STATUS: dict[str, str] = {status.value: status.value for status in RowStatus}


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """One decision and one reason for each row of the input, in its order.

    Attributes:
        codes: int8 [N]: 0 kept, 1 removed, 2 errored.
        reasons: a `Reason`, or the status of an errored row, [N].
        train_on_errored: whether errored rows are trained on all the same.
        threshold: that decided: one for all rows, or one for each, [N]; None where none did.
    """

    codes: NDArray[np.int8]
    reasons: Sequence[str]
    train_on_errored: bool = False
    threshold: float | NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        counts = self.counts()
        # A row with any other code is of none of the three.
        if len(self.reasons) != len(self) or sum(counts.values()) != len(self):
            of = f"{counts} of {len(self)}, reasons {len(self.reasons)}"
            raise AssertionError(f"rows were lost or doubled: {of}; please report this")

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def kept(self) -> NDArray[np.int64]:
        """Indices of kept rows, ascending."""
        return np.flatnonzero(self.codes == 0)

    @property
    def removed(self) -> NDArray[np.int64]:
        """Indices of removed rows, ascending."""
        return np.flatnonzero(self.codes == 1)

    @property
    def errored(self) -> NDArray[np.int64]:
        """Indices of errored rows, ascending."""
        return np.flatnonzero(self.codes == 2)

    def train_rows(self) -> NDArray[np.int64]:
        """Indices to train on, ascending: the kept rows, and with `on_error="keep"` the errored ones too."""
        return np.flatnonzero((self.codes == 0) | ((self.codes == 2) & self.train_on_errored))

    def words(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The decisions of rows start to stop: kept, removed, errored."""
        return [CODES[code].value for code in self.codes[start:stop]]

    def counts(self) -> dict[str, int]:
        """Rows of each decision, all three named even where there is none."""
        return {each.value: int(np.count_nonzero(self.codes == code)) for code, each in enumerate(CODES)}

    def reason_counts(self) -> dict[str, dict[str, int]]:
        """Rows of each reason within each decision, commonest first."""
        table: dict[str, dict[str, int]] = {each.value: {} for each in CODES}
        for (decision, reason), count in Counter(zip(self.words(), self.reasons, strict=True)).most_common():
            table[decision][reason] = count
        return table


def decide(
    scores: ArrayLike,
    status: Sequence[str],
    threshold: float | NDArray[np.float64] | None,
    *,
    on_error: OnError = "exclude",
    labels: Mapping[int, bool] | None = None,
    marks: Mapping[int, bool] | None = None,
) -> Decisions:
    """Decide every row: removed when its score is above the threshold. Nothing vanishes.

    Args:
        scores: scores, [N], NaN where there is none.
        status: the rows' statuses, [N]; only `ok` rows have a score.
        threshold: tau, or one for each row, [N] (-inf: not kept; inf: unlike the reference, kept whatever its score);
            or None when no decision can be taken: every scored row stays.
        on_error: what to do with rows whose status is not `ok`. "exclude": list them apart. "keep": list them apart,
            and train on them. "raise": raise. Where nothing is filtered (no threshold, no labels) they are kept in any
            case: the training set is the input.
        labels: row index -> harmful, from people. A label decides its row, whether that has a score or not.
        marks: row index -> whether it is removed, from people who looked at it: as labels, which they override.

    Raises:
        SAFTInputError: lengths differ, a status is unknown, scores and statuses contradict each other, a label is of
            no row, or there are errored rows and `on_error` is "raise".

    Examples:
        >>> decisions = decide([0.1, 0.9, float("nan")], ["ok", "ok", "truncated"], threshold=0.5)
        >>> decisions.words(), list(decisions.reasons)
        (['kept', 'removed', 'errored'], ['score', 'score', 'truncated'])
    """
    if on_error not in ("exclude", "keep", "raise"):
        raise SAFTInputError(f'on_error must be "exclude", "keep" or "raise"; found {on_error!r}')
    if threshold is not None and np.ndim(threshold) == 0 and not np.isfinite(threshold):
        raise SAFTInputError(f"threshold must be a finite number; found {threshold}")
    values, said = np.asarray(scores, dtype=np.float64), {Reason.LABEL: labels or {}, Reason.MARK: marks or {}}
    # One string for equal statuses: a column of a dataset makes a new one for every row.
    statuses = [_STATUS.get(each, each) for each in status]
    ok = _scored(values, statuses)
    filtered = threshold is not None or any(said.values())
    codes = np.where(ok, 0, 2 if filtered or on_error == "raise" else 0).astype(np.int8)
    if threshold is not None:
        codes[flagged(values, threshold)] = 1
    by_score = Reason.NO_DECISION if threshold is None else Reason.SCORE
    reasons = [by_score.value if scored else each for scored, each in zip(ok, statuses, strict=True)]
    for unlike in np.flatnonzero(ok & np.isposinf(np.nan if threshold is None else threshold)):
        reasons[unlike] = Reason.UNLIKE.value
    for reason, rows in said.items():
        for row, removed in rows.items():
            if not 0 <= row < len(codes):
                raise SAFTInputError(f"{reason}s name row {row}; the data has rows 0 to {len(codes) - 1}")
            codes[row], reasons[row] = int(removed), reason.value
    decisions = Decisions(codes, reasons, train_on_errored=on_error == "keep", threshold=threshold)
    if on_error == "raise" and decisions.errored.size:
        counts = decisions.reason_counts()[Decision.ERRORED]
        raise SAFTInputError(
            f"{decisions.errored.size} of {len(codes)} rows could not be scored ({counts}) and on_error='raise': fix "
            "or drop them, or use on_error='exclude' or 'keep'"
        )
    return decisions


def _scored(scores: NDArray[np.float64], status: list[str]) -> NDArray[np.bool_]:
    """Which rows are `ok`, after checking that these are exactly the rows with a finite score."""
    if scores.shape != (len(status),):
        raise SAFTInputError(f"scores have shape {list(scores.shape)}, statuses {len(status)} rows")
    if unknown := Counter(each for each in status if each not in _STATUS):
        raise SAFTInputError(
            f"saft_status holds {len(unknown)} unknown status(es), in {unknown.total()} rows; expected one of "
            f"{list(_STATUS)}: score the data again"
        )
    ok = np.fromiter((each == RowStatus.OK.value for each in status), dtype=np.bool_, count=len(status))
    missing, surplus = int((ok & ~np.isfinite(scores)).sum()), int((~ok & ~np.isnan(scores)).sum())
    if missing or surplus:
        raise SAFTInputError(
            f"saft_score and saft_status contradict each other: {missing} rows are `ok` without a finite score, "
            f"{surplus} are not `ok` and have one: score the data again"
        )
    return ok


def check_outcome(decisions: Decisions, why: str = "") -> None:
    """Refuse a filter that keeps nothing.

    Args:
        decisions: of all rows.
        why: more to say, where it is known.

    Raises:
        SAFTUndecidedError: no row is kept.
    """
    if decisions.kept.size == 0:
        raise SAFTUndecidedError(
            f"nothing is kept of {len(decisions)} rows ({decisions.reason_counts()}): check the threshold and the "
            f"statuses, or keep every row with on_undecided='keep'. {why}".rstrip(". ")
        )
