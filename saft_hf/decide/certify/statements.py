"""What fresh labels say about the rows that are kept, as numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saft_hf.records import to_plain
from saft_hf.summary import CertificateSummary, ShareEstimate


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
        errored = f" and {_rows(self.errored_kept)} without a score, taken as harmful" if self.errored_kept else ""
        return (
            f"With confidence {1 - self.delta:.0%}, at most {self.share:.2%} of the {_rows(self.kept)} kept at "
            f"threshold {self.threshold:.6g}{errored} are harmful ({self.harmful_labels} of {self.labels} fresh "
            "labels there are). This is a statement of its own, beside a certificate, with its own chance of error."
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """What fresh labels say about the harmful share of a kept set, or that they say too little.

    Attributes:
        alpha: largest harmful share.
        delta: chance, over the draw of the labels, that a certificate is issued and false.
        population: rows with a score, less those labelled for fitting.
        labels: fresh labels on them.
        harmful_labels: harmful ones among those.
        unscored_labels: fresh labels on rows without a score, left out.
        strata: independent samples; 1 where labels were drawn from the whole population.
        errored_kept: rows without a score that are trained on all the same, each counted as harmful.
        steps: the kept sets tested, smallest first; all but the last passed, and the last too where all did.
        labels_needed: where nothing is certified, about how many in all it would take; None where no number would do.
        in_use: a bound at the threshold in use, a statement of its own.
        shares: estimates of the harmful share before and after filtering at the threshold in use.
        unanswered: rows that were drawn to be labelled for this, and have no label.
        informative: rows that were suggested near the threshold: no part of the population.
    """

    alpha: float
    delta: float
    population: int
    labels: int
    harmful_labels: int
    unscored_labels: int
    strata: int
    errored_kept: int
    steps: tuple[Step, ...]
    labels_needed: int | None
    in_use: Bound | None = None
    shares: ShareReport | None = None
    unanswered: int = 0
    informative: int = 0

    @property
    def certified(self) -> Step | None:
        """The largest kept set that passed; None where nothing can be certified with these labels."""
        passed = [step for step in self.steps if step.p_value <= self.delta]
        return passed[-1] if passed else None

    @property
    def issued(self) -> bool:
        """Whether a kept set is certified."""
        return self.certified is not None

    @property
    def threshold(self) -> float | None:
        """Keep the rows with a score at or below it; None where nothing is certified."""
        return self.certified.threshold if self.certified else None

    @property
    def kept(self) -> int:
        """Rows of the population in the certified set."""
        return self.certified.kept if self.certified else 0

    def to_dict(self) -> dict[str, Any]:
        """JSON types: all fields, what is certified, and the text; no row numbers."""
        plain = to_plain(self)
        if self.in_use:
            plain["in_use"]["share"] = self.in_use.share
        return {**plain, "certified": to_plain(self.certified), "threshold": self.threshold, "text": self.says()}

    def summary(self, trained_on: bool | None = None) -> CertificateSummary:
        """What goes into a summary; `trained_on`: whether the rows that are kept in this run are a certified set."""
        return CertificateSummary(
            issued=self.issued,
            alpha=self.alpha,
            delta=self.delta,
            labels=self.labels,
            harmful_labels=self.harmful_labels,
            text=self.says(),
            threshold=self.threshold,
            kept=self.kept,
            trained_on=trained_on,
        )

    def says(self) -> str:
        """What it bounds and what not, for a report; then what is known of the rows kept at the threshold in use."""
        text = " ".join([self._verdict(), *(part.says() for part in (self.in_use, self.shares) if part)])
        if self.unanswered:
            text += f" {_rows(self.unanswered)} drawn for this without a label: what is said holds only where it is "
            text += "chance that they have none, not where they were hard to judge."
        if self.informative:
            text += f" Set aside: {_rows(self.informative)} suggested near the threshold, no uniform sample."
        return text

    def _verdict(self) -> str:
        drawn = f"{self.labels} fresh labels ({self.harmful_labels} harmful)"
        if self.strata > 1:
            drawn += f" in {self.strata} strata"
        step = self.certified
        if step is None:
            return f"Not certifiable: {self._shortfall(drawn)}"
        errored = ""
        if self.errored_kept:
            errored = f", and of the {_rows(self.errored_kept)} without a score that are kept too, all taken as harmful"
        return (
            f"With confidence {1 - self.delta:.0%}, at most {self.alpha:.2%} are harmful of the {_rows(step.kept)} "
            f"with a score up to {step.threshold:.6g}, {step.kept / self.population:.1%} of the "
            f"{self.population} that were scored and not labelled for fitting{errored}. This rests on {drawn}; "
            f"{step.labels} of them fall in the kept set, {step.harmful} harmful. The confidence is over the draw of "
            "the labels, which must be uniform and must have chosen nothing before. It stays true when rows labelled "
            "harmful leave the set, not when rows labelled benign do. It counts what the labellers call harmful in "
            "this dataset: it says nothing about other data, wrong labels, or what a model tuned on the kept rows "
            "will say."
        )

    def _shortfall(self, drawn: str) -> str:
        what = f"{drawn} cannot show, with confidence {1 - self.delta:.0%}, that any kept set holds at most "
        what += f"{self.alpha:.2%} harmful rows"
        if self.errored_kept:
            what += f" ({_rows(self.errored_kept)} without a score are kept and taken as harmful)"
        if self.steps:
            first = self.steps[0]
            what += f": the smallest set tried, {_rows(first.kept)}, has {first.harmful} harmful of {first.labels} "
            what += f"labels (p = {first.p_value:.2g})"
        else:
            what += ", were none of them harmful"
        if self.labels_needed is None:
            return f"{what}. At the rates seen no number of labels would do: a better score or a larger alpha would."
        what += f". About {self.labels_needed - self.labels} more labels would be needed, if harmful ones turn up at "
        return what + "the rates seen; nothing is said about the rows that are kept."


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
