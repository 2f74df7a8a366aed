"""What is said about a set of kept rows: how it is counted, tested, bounded and estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saft_hf.decide.filtering import Decision, Decisions, Reason
from saft_hf.summary import ShareEstimate


@dataclass(frozen=True, slots=True)
class ShareReport:
    """The harmful share before and after filtering.

    Attributes:
        before: of the population: scored rows less those labelled for fitting.
        after: of those of them that are kept; None where no label falls among the kept rows.
    """

    before: ShareEstimate
    after: ShareEstimate | None

    def says(self) -> str:
        """One sentence for a report."""
        after = self.after or "unknown, no label falls among the kept rows"
        return f"Estimated harmful share before filtering: {self.before}, after: {after}."


@dataclass(frozen=True, slots=True)
class Step:
    """One kept set that was tested.

    Attributes:
        threshold: the set is every row of the population with a score at or below it.
        kept: rows in it.
        labels: fresh labels that fall in it.
        harmful: harmful ones among them.
        limit: harmful rows it may hold; -1 or less where the errored rows alone are too many.
        p_value: for "it holds more than `limit` harmful rows".
    """

    threshold: float
    kept: int
    labels: int
    harmful: int
    limit: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Bound:
    """How many of the rows kept at one given threshold can be harmful.

    Attributes:
        threshold: rows with a score at or below it are kept; these labels must not have chosen it.
        delta: chance, over the draw of the labels, that the bound is false.
        kept: rows of the population that are kept.
        errored_kept: rows without a score that are kept too, each counted as harmful.
        labels: fresh labels on the kept rows.
        harmful_labels: harmful ones among them.
        most_harmful: the most harmful rows there can be, errored rows included.
    """

    threshold: float
    delta: float
    kept: int
    errored_kept: int
    labels: int
    harmful_labels: int
    most_harmful: int

    @property
    def share(self) -> float:
        """The largest harmful share there can be."""
        return self.most_harmful / (self.kept + self.errored_kept)

    def says(self) -> str:
        """One sentence for a report."""
        errored = f" and {row_count(self.errored_kept)} without a score, taken as harmful" if self.errored_kept else ""
        return (
            f"With confidence {confidence(self.delta)}, at most {at_most(self.share)} of the {row_count(self.kept)} "
            f"kept at threshold {self.threshold:.6g}{errored} are harmful ({self.harmful_labels} of {self.labels} "
            "fresh labels there are). This is a statement of its own, beside a certificate, with its own chance of "
            "error."
        )


@dataclass(frozen=True, slots=True)
class RowsInUse:
    """The rows that a filter keeps, counted as it counts them: `kept`, `removed` and `errored` add up to `rows`.

    Attributes:
        threshold: rows with a score above it are removed; None where it differs by stratum.
        rows: that came in.
        by_score: kept by their score, or since they are unlike the reference.
        unlike: the latter.
        counted: those of them that the statement is about; for the others, labels were used before, or none were drawn
            as high as they score.
        by_label: kept because people labelled them benign, or marked them: no part of any statement.
        removed: removed rows.
        errored: rows without a score.
        errored_kept: whether these are trained on all the same, and so taken as harmful.
    """

    threshold: float | None
    rows: int
    by_score: int
    unlike: int
    counted: int
    by_label: int
    removed: int
    errored: int
    errored_kept: bool

    @classmethod
    def of(cls, decisions: Decisions, threshold: float | None, counted: int) -> RowsInUse:
        """Count what a filter decided; `counted`: how many of the rows kept by score the statement is about."""
        reasons = decisions.reason_counts()
        by_label = sum(reasons[Decision.KEPT].get(reason, 0) for reason in (Reason.LABEL, Reason.MARK))
        return cls(
            threshold=threshold,
            rows=len(decisions),
            by_score=len(decisions.kept) - by_label,
            unlike=reasons[Decision.KEPT].get(Reason.UNLIKE, 0),
            counted=counted,
            by_label=by_label,
            removed=len(decisions.removed),
            errored=len(decisions.errored),
            errored_kept=decisions.train_on_errored,
        )

    def says(self, statement: str) -> str:
        """Four lines, with what is said about the rows kept by score in the second."""
        at = "thresholds by stratum" if self.threshold is None else f"threshold {self.threshold:.6g}"
        kept, used = self.by_score + self.by_label, self.by_score - self.counted
        aside = (
            f" Not about the {row_count(used)} among them whose labels were used before, or whose score lies above the "
            "one up to which labels were drawn."
            if used
            else ""
        )
        unlike = f", {self.unlike} of them unlike the reference, whatever their score" if self.unlike else ""
        errored = "trained on too" if self.errored_kept else "left out"
        return "\n".join(
            [
                f"Set in use: {row_count(kept)} kept at {at}, {self.removed} removed and {self.errored} errored, "
                f"of {self.rows}.",
                f"Kept by score: {row_count(self.by_score)}{unlike}. {statement}{aside}",
                f"Kept by label: {row_count(self.by_label)}, no part of the statement.",
                f"Errored: {row_count(self.errored)} without a score, {errored}.",
            ]
        )


def row_count(count: int) -> str:
    """A number of rows in words."""
    return "1 row" if count == 1 else f"{count} rows"


def at_most(share: float) -> str:
    """A share that is a limit: rounded up, what is said stays true."""
    return f"{math.ceil(share * 1e4 - 1e-6) / 100:.2f}%"


def confidence(delta: float) -> str:
    """1 - delta, rounded down."""
    return f"{math.floor((1 - delta) * 1e4 + 1e-6) / 100:g}%"
