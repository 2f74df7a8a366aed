"""The certificate: what fresh labels say about the rows that are kept, as numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from saft_hf.decide.certify.statements import Bound, RowsInUse, ShareReport, Step, at_most, confidence, row_count
from saft_hf.decide.filtering import Decisions
from saft_hf.records import to_plain
from saft_hf.summary import CertificateSummary

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Certificate:
    """What fresh labels say about the harmful share of a kept set, or that they say too little.

    Attributes:
        alpha: largest harmful share; with `parts` that of their union.
        delta: chance, over the draw of the labels, that a certificate is issued and false, at any look.
        population: rows with a score, less those labelled for fitting; with `drawn_from` those kept at it.
        labels: fresh labels on them.
        harmful_labels: harmful ones among those.
        unscored_labels: fresh labels on rows without a score, left out.
        strata: independent samples; 1 where labels were drawn from the whole population.
        errored_kept: rows without a score that are trained on all the same, each counted as harmful.
        unlike: rows of the population that are unlike the reference: kept in every set, and counted in it like others.
        steps: the kept sets tested, smallest first; all but the last passed, and the last too where all did.
        labels_needed: where nothing is certified, about how many in all it would take; None where no number would do.
        drawn_from: the threshold whose kept rows the labels were drawn from; None where they come from all rows.
        looks: how many looks at labels were announced beforehand; each has an equal part of `delta`.
        stratify_by: column whose values have a certificate each, in `parts`.
        parts: value -> its certificate, each with an equal part of `delta`.
        in_use: a bound on the rows that are kept by their score at the threshold in use, a statement of its own.
        shares: estimates of the harmful share before and after filtering at the threshold in use.
        unanswered: rows that were drawn to be labelled for this, and have no label.
        informative: rows that were suggested for fitting alone: no part of the population.
        rows: all rows, as the threshold in use divides them.
        look: which one this is at least; None where no earlier one is known.
        dataset: digest of the rows and scores that this is about.
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
    unlike: int = 0
    drawn_from: float | None = None
    looks: int = 1
    stratify_by: str | None = None
    parts: dict[str, Certificate] = field(default_factory=dict)
    in_use: Bound | None = None
    shares: ShareReport | None = None
    unanswered: int = 0
    informative: int = 0
    # Of the call that it was made in: another one with the same labels makes an equal certificate.
    rows: RowsInUse | None = field(default=None, compare=False)
    look: int | None = field(default=None, compare=False)
    dataset: str | None = field(default=None, compare=False)

    @property
    def level(self) -> float:
        """What a p-value is held against: this look's part of `delta`."""
        return self.delta / self.looks

    @property
    def passed(self) -> tuple[Step, ...]:
        """The kept sets that passed, smallest first: all of them are certified together."""
        return tuple(step for step in self.steps if step.p_value <= self.level)

    @property
    def certified(self) -> Step | None:
        """The largest kept set that passed; None where nothing can be certified with these labels."""
        return self.passed[-1] if self.passed else None

    @property
    def issued(self) -> bool:
        """Whether a kept set is certified, of one stratum at least."""
        return self.certified is not None or any(part.issued for part in self.parts.values())

    @property
    def threshold(self) -> float | None:
        """Keep the rows with a score at or below it; None where nothing is certified, and with `parts`."""
        return self.certified.threshold if self.certified else None

    @property
    def kept(self) -> int:
        """Rows of the population in the certified set."""
        return self.certified.kept if self.certified else sum(part.kept for part in self.parts.values())

    def used(self, decisions: Decisions) -> Certificate:
        """The certificate where its own set is in use: what is said begins with the rows that were decided so."""
        return replace(self, rows=RowsInUse.of(decisions, self.threshold, self.kept), in_use=None, shares=None)

    @classmethod
    def together(cls, parts: dict[str, Certificate], stratify_by: str, delta: float, looks: int) -> Certificate:
        """One certificate for the union of the strata's kept sets, from one for each, whose delta add up to `delta`."""
        all_parts = parts.values()
        errored, certified = sum(part.errored_kept for part in all_parts), [part.certified for part in all_parts]
        kept = sum(step.kept for step in certified if step) + errored
        most = sum(step.limit + part.errored_kept for part, step in zip(all_parts, certified, strict=True) if step)
        # Errored rows of a stratum that nothing is certified of are trained on too.
        most += sum(part.errored_kept for part in all_parts if not part.issued)
        return cls(
            alpha=most / kept if any(certified) else max(part.alpha for part in all_parts),
            delta=delta,
            population=sum(part.population for part in all_parts),
            labels=sum(part.labels for part in all_parts),
            harmful_labels=sum(part.harmful_labels for part in all_parts),
            unscored_labels=sum(part.unscored_labels for part in all_parts),
            strata=len(parts),
            errored_kept=errored,
            unlike=sum(part.unlike for part in all_parts),
            steps=(),
            labels_needed=None,
            looks=looks,
            stratify_by=stratify_by,
            parts=parts,
        )

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
            looks=self.looks,
            look=self.look,
        )

    def says(self) -> str:
        """The set in use, in four lines; what is certified, and what not; then estimates at the threshold in use."""
        lines = []
        if self.rows:
            statement = "No bound: no label falls on them, or a certificate's labels chose the threshold."
            if self.in_use:
                statement = self.in_use.says()
            elif self.rows.threshold in [step.threshold for step in self.passed] or (
                self.parts and self.issued and self.rows.threshold is None
            ):
                statement = self._of_the_certified_set(self.rows.counted)
            lines.append(self.rows.says(statement))
        lines.append(self._verdict())
        if self.shares:
            lines.append(self.shares.says())
        if self.looks > 1 or (self.look or 1) > self.looks:
            lines.append(self._looks())
        if self.unanswered:
            lines.append(
                f"{row_count(self.unanswered)} drawn for this without a label: what is said holds only where it is "
                "chance that they have none, not where they were hard to judge."
            )
        if self.informative:
            lines.append(f"Set aside: {row_count(self.informative)} suggested for fitting alone, no uniform sample.")
        return "\n".join(lines)

    def _of_the_certified_set(self, rows: int) -> str:
        errored = f" and the {row_count(self.errored_kept)} below" if self.errored_kept else ""
        return (
            f"With confidence {confidence(self.delta)}, at most {at_most(self.alpha)} of {row_count(rows)} among them"
            f"{errored} are harmful."
        )

    def _looks(self) -> str:
        look = f" This is look {self.look} at least." if self.look else " No earlier one is known here."
        if (self.look or 1) <= self.looks:
            return (
                f"{self.looks} looks were announced beforehand: each tests with {self.level:.3g}, an equal part of the "
                f"chance of error {self.delta:.3g}, which holds for all of them together.{look}"
            )
        return (
            f"These labels hold those of an earlier look, and more: this is look {self.look} at least, and "
            f"{self.looks} was announced. The chance that any is issued and false is up to "
            f"{min(1, (self.look or 1) * self.level):.3g}, not {self.delta:.3g}: draw labels anew for another look, or "
            "announce `looks` before the first."
        )

    def _verdict(self) -> str:
        if self.parts:
            return self._by_stratum()
        drawn = f"{self.labels} fresh labels ({self.harmful_labels} harmful)"
        if self.strata > 1:
            drawn += f" in {self.strata} strata"
        if self.drawn_from is not None:
            drawn += f", drawn from the rows kept at threshold {self.drawn_from:.6g} alone,"
        step = self.certified
        if step is None:
            return f"Not certifiable: {self._shortfall(drawn)}"
        errored, share = "", ""
        if self.errored_kept:
            errored = (
                f", and of the {row_count(self.errored_kept)} without a score that are kept too, all taken as harmful"
            )
        if self.drawn_from is None:
            share = f", {step.kept / self.population:.1%} of the {self.population} that were scored and"
        return (
            f"With confidence {confidence(self.delta)}, at most {at_most(self.alpha)} are harmful of the "
            f"{row_count(step.kept)} with a score up to {step.threshold:.6g}{self._and_unlike()}"
            f"{share or ' that were'} not labelled for "
            f"fitting{errored}. This rests on {drawn.rstrip(',')}; {step.labels} of them fall in the kept set, "
            f"{step.harmful} harmful. {self._caveats()}"
        )

    def _by_stratum(self) -> str:
        told = [f"{_quote(name)}: {part._in_short()}" for name, part in self.parts.items()]
        union = f"together at most {at_most(self.alpha)} of {row_count(self.kept)}. " if self.issued else ""
        errored = f", and of the {row_count(self.errored_kept)} without a score that are kept too" * bool(
            self.errored_kept
        )
        start = f"With confidence {confidence(self.delta)} for all of them" if self.issued else "Not certifiable"
        return f"{start}{errored}, by {_quote(self.stratify_by)}: {'; '.join(told)}; {union}{self._caveats()}"

    def _in_short(self) -> str:
        step, need = self.certified, self.labels_needed
        if step is None:
            more = "no number of labels would do" if need is None else f"about {need} fresh labels would be needed"
            return f"nothing certified, so none of it is kept ({self.harmful_labels} of {self.labels} harmful; {more})"
        return (
            f"at most {at_most(self.alpha)} are harmful of the {row_count(step.kept)} with a score up to "
            f"{step.threshold:.6g}{self._and_unlike()} ({step.harmful} of {step.labels} fresh labels there are)"
        )

    def _and_unlike(self) -> str:
        return f" or unlike the reference ({self.unlike} of them, kept whatever their score)" if self.unlike else ""

    def _caveats(self) -> str:
        once = ", and which are looked at once (adding to them and certifying again multiplies the chance of error)"
        return _CAVEATS.format(looks=once if self.looks == 1 else "")

    def _shortfall(self, drawn: str) -> str:
        what = f"{drawn} cannot show, with confidence {confidence(self.delta)}, that any kept set holds at most "
        what += f"{at_most(self.alpha)} harmful rows"
        if self.errored_kept:
            what += f" ({row_count(self.errored_kept)} without a score are kept and taken as harmful)"
        if self.steps:
            first = self.steps[0]
            what += f": the smallest set tried, {row_count(first.kept)}, has {first.harmful} harmful of {first.labels} "
            what += f"labels (p = {first.p_value:.2g})"
        else:
            what += ", were none of them harmful"
        if self.labels_needed is None:
            return f"{what}. At the rates seen no number of labels would do: a better score or a larger alpha would."
        what += f". About {self.labels_needed - self.labels} more labels would be needed, if harmful ones turn up at "
        what += "the rates seen; nothing is said about the rows that are kept."
        if self.looks == 1:
            what += (
                f" For another look draw all of them anew, about {self.labels_needed} (`suggest_labels` with another "
                "`seed`): adding to these multiplies the chance of error, unless `looks` were announced beforehand."
            )
        return what


_CAVEATS = (
    "The confidence is over the draw of the labels, which must be uniform and must have chosen nothing before{looks}. "
    "It stays true when rows labelled harmful leave the set, not when rows labelled benign do. It counts what the "
    "labellers call harmful in this dataset: it says nothing about other data, wrong labels, or what a model tuned on "
    "the kept rows will say."
)


def _quote(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
