"""What is known of a run, in one typed record: log lines, `saft_summary.json` and cards are made from it.

`SAFTScorer.fit` makes a `Summary`; `filter`, `certify`, trainers and pushes extend it with `dataclasses.replace`. It
holds counts and aggregate figures, and nothing about a single row.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from saft_hf.records import Count, Digest, Matching, Name, Share, to_plain

DEMONSTRATIONS_SHARE = 0.03
"""Demonstrations beside the kept rows, unless another share is given."""

# -- what a fit finds: this part travels in a saved scorer -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShareEstimate:
    """A harmful share with its confidence interval.

    Attributes:
        share: the estimate, 0 to 1.
        low: lower end of the interval.
        high: upper end.
        confidence: of the interval.
        labels: labels it rests on.
        harmful: harmful ones among them.
        rows: rows it is about; None where their number is not known.
        method: `clopper-pearson`, `hypergeometric` or `stratified`.
    """

    share: Share
    low: Share
    high: Share
    confidence: Share
    labels: Count
    harmful: Count
    rows: Count | None
    method: Name

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.low:.1%} to {self.high:.1%}, confidence {self.confidence:.0%})"


@dataclass(frozen=True, kw_only=True)
class PoolCounts:
    """The rows that a scorer was fitted on.

    Attributes:
        rows: all of them.
        scored: those that have a score.
        unique: different renderings among them.
        unscored: status -> rows, for the others.
        flagged: scored rows above the threshold; None without a threshold.
    """

    rows: Count
    scored: Count
    unique: Count
    unscored: dict[Name, Count] = field(default_factory=dict)
    flagged: Count | None = None


def ranks_the_other_way(auroc: float, harmful: int, benign: int) -> bool:
    """Whether a score clearly ranks labelled rows the wrong way round.

    Three standard errors below an AUROC without signal (Mann and Whitney 1947), and no small effect.
    """
    if not harmful or not benign:
        return False
    return auroc < min(0.4, 0.5 - 3 * math.sqrt((harmful + benign + 1) / (12 * harmful * benign)))


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """The labelled rows that score and threshold were chosen on.

    Attributes:
        rows: labelled rows.
        harmful: harmful ones among them.
        column: the column that holds the labels.
        uniform: whether they were drawn uniformly from the pool.
        reference_auroc: of the built-in reference set's score on them; None where that was not taken, or says nothing.
    """

    rows: Count
    harmful: Count
    column: str
    uniform: bool = True
    reference_auroc: Share | None = None

    def __str__(self) -> str:
        return f"{self.harmful} of {self.rows} labelled rows are harmful"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks for labels that are the wrong way round, a sentence each."""
        found = []
        if self.uniform and 2 * self.harmful > self.rows:
            found.append(f"{self}, more than half of a uniform sample")
        benign = self.rows - self.harmful
        if self.reference_auroc is not None and ranks_the_other_way(self.reference_auroc, self.harmful, benign):
            found.append(
                f"The built-in reference set ranks the {self.rows} labelled rows the other way round (AUROC "
                f"{self.reference_auroc:.3f})"
            )
        # Not the column's name: a scorer from elsewhere brings it, and this goes into cards.
        check = "The labels may be the wrong way round: check the label column and harmful_value."
        return tuple(f"{text}. {check}" for text in found)


@dataclass(frozen=True, kw_only=True)
class PublishedMetrics:
    """What the published procedure found (arXiv 2410.10014).

    Attributes:
        rank: numerical rank of the pool, counted up to one more than the directions that were asked for.
        spectral_gap: how much less variance direction k + 1 has than direction k, 0 to 1.
        variance_share: share of the pool's variance along the k directions, 0 to 1.
        f1: best F1 on the labels: what k and the threshold were chosen by, no estimate of quality.
        f1_by_k: number of directions -> best F1, for those that were compared.
        separating_points: how many of the 100 candidate thresholds divide the pool differently.
    """

    rank: Count
    spectral_gap: Share
    variance_share: Share
    f1: Share | None = None
    f1_by_k: dict[Name, Share] = field(default_factory=dict)
    separating_points: Count | None = None


@dataclass(frozen=True, kw_only=True)
class LabelTest:
    """Whether a learned score can be told from chance on the labels.

    Attributes:
        auroc: of the labelled rows, out of fold.
        p_value: how often labels dealt out at random do at least as well.
        permutations: how many times they were dealt out; 0 where too few labels leave nothing to test.
        weights: share of the score that each feature, or the reference set, makes up.
    """

    auroc: Share
    p_value: Share
    permutations: Count
    weights: dict[Name, Share] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What cross-validation on the labels expects of one threshold, likewise."""

    threshold: float
    fpr: Share
    recall: Share


@dataclass(frozen=True, kw_only=True)
class ThresholdEffect:
    """What cross-validation on the labels expects of the threshold.

    Attributes:
        fpr: share of the benign rows that are removed, on average over draws of the labels.
        recall: share of the harmful rows that are removed, on average likewise.
        attainable: False where the labels are too few to hold the share that was asked for.
        curve: the same for other thresholds, ascending.
    """

    fpr: Share
    recall: Share
    attainable: bool = True
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a filter is expected to do to harmful and harmless rows, by cross-validation on uniform labels.

    Attributes:
        lost: harmless rows among the removed ones.
        left: harmful rows among the kept ones.
        recall: share of the harmful rows that is removed.
        before: harmful share of the rows that have a score, before filtering.
        after: the same of those that are kept.
    """

    lost: int
    left: int
    recall: float
    before: ShareEstimate
    after: float


Commit = Annotated[str, Matching(r"[\w./-]{1,100}")]
LICENCE = r"[\w ./,()+-]{1,80}"
"""What a card can show of a licence."""
SourceName = Annotated[str, Matching(r"[\w ./,()+-]{1,96}")]


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """One source of a reference set: what may be told of it, no text of a row.

    Attributes:
        name: Hub id, the name of a file, or what the user calls it.
        digest: SHA-256 of the rows that are fitted on and their labels.
        rows: all that were read: those below together.
        harmful: harmful rows that are fitted on.
        benign: benign rows that are fitted on.
        unlabelled: rows without a label, left out.
        duplicates: rows that are left out because an equal one stands for them, or is labelled the other way.
        revision: commit of a Hub dataset.
        licence: as the user gave it.
    """

    name: SourceName
    digest: Digest
    rows: Count
    harmful: Count
    benign: Count
    unlabelled: Count = 0
    duplicates: Count = 0
    revision: Commit | None = None
    licence: Annotated[str, Matching(LICENCE)] | None = None


@dataclass(frozen=True, kw_only=True)
class ComponentMetrics:
    """The harmful or the benign rows of one source of a reference, and how a probe does that has not seen them.

    Attributes:
        source: its name.
        harmful: which of them.
        rows: that were fitted on.
        above: share of them above the score that a twentieth of the benign rows exceeds, averaged over sources: recall
            of harmful rows, false positives among benign ones. By a probe that has not seen the source.
        left_out: whether there is such a probe; else it has not seen the prompts, and has other rows of the source.
    """

    source: SourceName
    harmful: bool
    rows: Count
    above: Share
    left_out: bool


@dataclass(frozen=True, kw_only=True)
class ProbeMetrics:
    """A probe, and what it does where it has seen neither the prompts nor, if that can be, the source.

    Attributes:
        sources: what it was fitted on.
        components: each source's harmful and benign rows.
        in_pool: reference rows that were left out since they stand in the pool.
        auroc: over prompts that it has not seen.
        held_out_auroc: over sources that it has not seen: what to expect of other data. None where without one of them
            no harmful row of another prompt is left to learn from: of a single harmful source there are unseen prompts.
        general: whether a benign source stands on its own, such as general instructions, beside mixed ones.
        turned: sources whose own labels a probe of the others ranks the wrong way round.
        few: whether it stands on the built-in rows, since the user's own are too few or none.
        repo: Hub id of a probe that was fitted before, which was named in place of rows.
        repo_revision: its commit.
    """

    sources: tuple[SourceInfo, ...]
    components: tuple[ComponentMetrics, ...]
    in_pool: Count
    auroc: Share
    held_out_auroc: Share | None
    general: bool
    turned: tuple[SourceName, ...] = ()
    few: bool = False
    repo: SourceName | None = None
    repo_revision: Commit | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the reference lacks, a sentence each."""
        found = []
        used = {part.source for part in self.components}
        if unused := [source.name for source in self.sources if source.name not in used]:
            found.append(
                f"No row of {', '.join(unused)} is fitted on: none can be read as the others are, or all of them stand "
                "in the pool."
            )
        if self.turned:
            found.append(
                f"A probe of the other sources ranks the rows of {', '.join(self.turned)} the other way round than "
                "their labels do: the labels of a source may be the wrong way round. Check its label column and "
                "harmful_value."
            )
        if not self.general:
            found.append(
                "The reference has no source of harmless rows alone: without general instructions like your own, a "
                "probe takes what it has never seen for harmful. Add some."
            )
        if len({part.source for part in self.components if part.harmful}) < 2:
            found.append(
                "The reference has one harmful source: harm of other kinds is counted as benign, and how a probe does "
                "that has not seen it cannot be measured (its figures are those of unseen prompts). Add another."
            )
        elif self.held_out_auroc is None:
            found.append(
                "A harmful source has prompts that all other harmful rows share: how a probe does that has not seen it "
                "cannot be measured (its figures are those of unseen prompts). Add one with other prompts."
            )
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class MixtureMetrics:
    """What a pool is made of, as far as the sources of a reference can tell.

    Attributes:
        share: estimated harmful share of the rows that are like the reference's.
        low: where its 90 % interval begins.
        high: where it ends.
        misfit: share of the scores that no mixture explains.
        outside: rows that are unlike all reference rows: no probe removes them.
        rows: rows that have a score.
        unexplained: rows above nearly all benign rows of every source that are counted as benign all the same.
        recall: share of the harmful rows that the threshold is expected to remove.
        lost: share of the harmless rows that it is expected to remove.
        weights: of each component of the probe, in its order.
        above: share of each that lies above the threshold where the source was not seen; empty without one.
    """

    share: Share
    low: Share
    high: Share
    misfit: Share
    outside: Count
    rows: Count
    unexplained: Count
    recall: Share
    lost: Share
    weights: tuple[Share, ...]
    above: tuple[Share, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the estimate cannot tell, a sentence each."""
        found = []
        if self.outside > self.rows / 20:
            found.append(
                f"{self.outside} of {self.rows} rows are unlike anything in the reference: a probe says nothing of "
                "them, and removes none. Add rows like them to it."
            )
        if self.unexplained > max(5, self.rows / 100):
            found.append(
                f"{self.unexplained} of {self.rows} rows score above nearly all benign rows of every source, though "
                "the mixture counts them as benign: harm of a kind that the reference lacks looks like this. Label "
                "some of them: after a fit with `method='reference'`, `suggest_labels(informative=...)` draws them."
            )
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class FitMetrics:
    """Counts and figures of a fit, as they travel in a saved scorer.

    Attributes:
        pool: the rows it was fitted on.
        score_quantiles: quantile (`0.05`, ...) -> score of the pool.
        padding_share: share of the tokens in all batches that is padding.
        labels: the labelled rows; None without.
        harmful_share: of the pool before filtering, where uniform labels tell it.
        aim: what the threshold was chosen for on the labels, such as `fpr=0.05`; None without labels.
        contamination: harmful share that was given; None where none was.
        published: for `method="saft"`.
        test: for a score that was learned from labels.
        expected: effect of the threshold, where labels chose it.
        probe: for a score that a probe has part in.
        mixture: what the probe says the pool is made of.
        notes: what a reader must know of the readouts in use.
    """

    pool: PoolCounts
    score_quantiles: dict[Name, float] = field(default_factory=dict)
    padding_share: Share = 0.0
    labels: LabelCounts | None = None
    harmful_share: ShareEstimate | None = None
    aim: Name | None = None
    contamination: Share | None = None
    published: PublishedMetrics | None = None
    test: LabelTest | None = None
    expected: ThresholdEffect | None = None
    probe: ProbeMetrics | None = None
    mixture: MixtureMetrics | None = None
    notes: tuple[str, ...] = ()


# -- what a filter finds -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Confounds:
    """What else the score follows.

    Attributes:
        rows: rows that were compared.
        spearman: name of a feature of the text -> Spearman's correlation with the score; None where one is constant.
        warn_above: |correlation| above which a feature is named in a warning.
        warnings: a sentence for each.
    """

    rows: int
    spearman: dict[str, float | None]
    warn_above: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Leverage:
    """How much of the pool's energy hangs on one row, or on the copies of one.

    Attributes:
        top_row_share: share of the row with the most, 0 to 1.
        top_copies_share: share of the copies with the most together.
        top_copies: their number.
        warn_above: share above which there is a warning.
        warnings: a sentence, or none.
    """

    top_row_share: float
    top_copies_share: float
    top_copies: int
    warn_above: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GroupShare:
    """How much of a group of rows is kept.

    Attributes:
        rows: of the group.
        kept: those that are trained on.
        removed: those that are removed as harmful.
        share: kept / rows, with `low` and `high` (Clopper-Pearson); None where the group is empty.
        low: lower end of the interval.
        high: upper end.
        confidence: of the interval.
        warnings: a sentence, or none.
    """

    rows: int
    kept: int
    removed: int
    share: float | None
    low: float | None
    high: float | None
    confidence: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FlaggedShare:
    """How many rows are above the threshold, beside how many were when the scorer was fitted.

    Attributes:
        share: of the rows that have a score.
        of_fit: of the rows that the scorer was fitted on, at the threshold of the fit.
        warnings: a sentence where the two are far apart, or none.
    """

    share: float
    of_fit: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CertificateSummary:
    """What fresh labels certified.

    Attributes:
        issued: whether a kept set is certified.
        alpha: largest harmful share.
        delta: chance that a certificate is issued and false.
        labels: fresh labels.
        harmful_labels: harmful ones among them.
        text: what it bounds and what not, in words.
        threshold: of the certified set; None where none is.
        kept: rows in it.
        trained_on: whether the rows that are kept in this run are a certified set.
        looks: how many looks at labels were announced beforehand.
        look: which one this is at least; None where no earlier one is known.
    """

    issued: bool
    alpha: float
    delta: float
    labels: int
    harmful_labels: int
    text: str
    threshold: float | None = None
    kept: int = 0
    trained_on: bool | None = None
    looks: int = 1
    look: int | None = None


@dataclass(frozen=True, kw_only=True)
class EvalCounts:
    """What the scorer says of rows to evaluate on.

    Attributes:
        filtered: whether the rows above the threshold were taken out.
        rows: all of them.
        kept: rows up to the threshold.
        removed: rows above it.
        errored: rows without a score.
        reasons: decision -> reason -> rows.
        score_quantiles: quantile -> score.
    """

    filtered: bool
    rows: int
    kept: int
    removed: int
    errored: int
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    score_quantiles: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Safe answers to harmful requests that are mixed into the rows to train on. They are no rows of the input.

    Attributes:
        rows: how many, copies too.
        different: how many different ones.
        share: their number beside that of the input's rows that are kept.
        source: `built-in`, or a Hub id; None where there are none, or they came in memory.
    """

    rows: int = 0
    different: int = 0
    share: float = 0.0
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """Where rows come from.

    Attributes:
        dataset: Hub id.
        revision: commit.
        config: configuration.
        split: split.
        license: as its card names it; None where it does not, or was not read.
    """

    dataset: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All that is needed to make the same decisions again, and to tell whether files are those that were made.

    Attributes:
        created: UTC time of the decisions, ISO 8601.
        input: path or Hub id of the rows, as given; None for rows that came in memory.
        input_revision: commit of a Hub dataset.
        input_rows: rows that came in.
        input_sha256: SHA-256 of the digests of all rows that came in.
        model: name or folder of the model, as given.
        model_revision: its commit, where one is known.
        model_fingerprint: SHA-256 of the weights that were read.
        options: options that were set, name -> value.
        seed: of the draw of the labels, where rows were drawn.
        versions: package -> version.
        audit_sha256: SHA-256 of the audit file.
        kept_sha256: SHA-256 of the digests of the rows that are kept.
        demonstrations_sha256: SHA-256 of the digests of the demonstrations; None without.
    """

    created: str
    input: str | None = None
    input_revision: str | None = None
    input_rows: int | None = None
    input_sha256: str | None = None
    model: str | None = None
    model_revision: str | None = None
    model_fingerprint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    audit_sha256: str | None = None
    kept_sha256: str | None = None
    demonstrations_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is known of a fit, a filter or a training run.

    Attributes:
        filtered: whether rows could be removed.
        undecided: why scores decide nothing; None where they do.
        method: how the score was found, such as `saft` or `auto`.
        model: Hub id of the model that was read; None for a folder on this machine, or an object.
        model_revision: commit of the model, where one is known.
        model_fingerprint: SHA-256 of the weights that are read.
        template_digest: SHA-256 of what chat template and tokenizer make of a few fixed rows.
        num_layers: layers of the whole model.
        layers: layers that the score reads.
        readouts: readouts that it reads.
        k: principal directions that the published score sums; None for a learned direction.
        threshold: rows above it are removed; None where there is none.
        threshold_from: what chose it: `f1`, `contamination`, `given`, `reference`, `certificate`, an aim such as
            `fpr=0.05`, or `none`; `labels` where there is none, and rows were decided by people's labels alone.
        fit: counts and figures of the fit; None where the scores came with the data.
        rows: rows that came in; None before a filter, and for a stream.
        kept: rows that are kept; for a stream so far, likewise the next two.
        removed: rows that are removed.
        errored: rows that could not be scored.
        reasons: decision -> reason -> rows.
        statuses: status -> rows, where rows were scored only.
        action: what is done with removed rows: `remove`, or `mask`: they are trained on without their responses.
        masked: rows that are.
        demonstrations: safe answers to harmful requests that are mixed in; they count in none of the above.
        near_threshold: rows that lie so close to it that another batch composition may decide them otherwise.
        score_quantiles: quantile -> score of the rows.
        flagged: how many rows are above the threshold, beside how many were when the scorer was fitted.
        confounds: what else the score follows.
        leverage: how much hangs on single rows.
        groups: column -> how much of the rows that it marks is kept.
        by: column -> value -> how much of the rows with that value is kept, and removed.
        certificate: what fresh labels say of the kept rows.
        evaluation: name of a set -> what the scorer says of rows to evaluate on.
        stream: whether the rows are filtered while a model trains.
        source: where the rows come from, on the Hub.
        scorer_repo: Hub id that the scorer was pushed to.
        dataset_repo: Hub id that the kept rows were pushed to.
        seconds: that scoring and filtering took.
        provenance: what the decisions can be made again from.
    """

    filtered: bool = False
    undecided: str | None = None
    method: str | None = None
    model: str | None = None
    model_revision: str | None = None
    model_fingerprint: str | None = None
    template_digest: str | None = None
    num_layers: int | None = None
    layers: tuple[int, ...] = ()
    readouts: tuple[str, ...] = ()
    k: int | None = None
    threshold: float | None = None
    threshold_from: str | None = None
    fit: FitMetrics | None = None
    rows: int | None = None
    kept: int | None = None
    removed: int | None = None
    errored: int | None = None
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    action: str = "remove"
    masked: int = 0
    demonstrations: Demonstrations = Demonstrations()
    near_threshold: int | None = None
    score_quantiles: dict[str, float] = field(default_factory=dict)
    flagged: FlaggedShare | None = None
    confounds: Confounds | None = None
    leverage: Leverage | None = None
    groups: dict[str, GroupShare] = field(default_factory=dict)
    by: dict[str, dict[str, GroupShare]] = field(default_factory=dict)
    certificate: CertificateSummary | None = None
    evaluation: dict[str, EvalCounts] = field(default_factory=dict)
    stream: bool = False
    source: DatasetSource | None = None
    scorer_repo: str | None = None
    dataset_repo: str | None = None
    seconds: float | None = None
    provenance: Provenance | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the readouts in use."""
        return self.fit.notes if self.fit else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the labels, and what the filter does besides removing harmful rows, a sentence each."""
        # What the score follows matters where it removes rows.
        by_score = (self.confounds, self.leverage) if self.removed else ()
        # Where nothing is decided, the reason says what probe and mixture lack.
        mixture = None if self.undecided or self.fit is None else self.fit.mixture
        fit = (self.fit.labels, self.fit.probe, mixture) if self.fit else ()
        parts = (*fit, self.flagged, *by_score, *self.groups.values())
        parts += tuple(share for shares in self.by.values() for share in shares.values())
        found = tuple(text for part in parts if part is not None for text in part.warnings)
        if self.fit and self.fit.probe and self.fit.probe.few and not self.undecided:
            found += (
                "The probe stands on the few rows that ship with the package, as the user's own are too few or none: "
                "it finds a part of what is harmful. Labelled rows of public sources, as `reference`, find more.",
            )
        if self.threshold_from == "labels":
            why = self.undecided or "there is no threshold"
            found += (f"Labels alone decide, other rows with a score stay: {why}.",)
        told, mixture = (self.fit.harmful_share, self.fit.mixture) if self.fit else (None, None)
        if told and mixture and (told.low > mixture.high or mixture.low > told.high):
            found += (
                f"Labels and reference do not tell the same harmful share: {told.low:.1%} to {told.high:.1%} by the "
                f"labels, {mixture.low:.1%} to {mixture.high:.1%} by the reference. Harm of a kind that the reference "
                "lacks, or another idea of harm in the labels, looks like this.",
            )
        removed, rows = self.removed, self.rows
        if rows is None and self.fit and self.threshold is not None:
            removed, rows = self.fit.pool.flagged, self.fit.pool.scored
        if removed and rows and 2 * removed > rows:
            many = f"{removed} of {rows} rows are above the threshold or labelled harmful, more than half of them"
            found += (f"{many}: check the threshold, and which way round the labels are.",)
        return found

    @property
    def expected(self) -> Expectation | None:
        """What the threshold in use is expected to do; None where labels did not choose it, or tell no share."""
        fit = self.fit
        if not fit or not fit.expected or self.threshold_from not in (fit.aim, "contamination"):
            return None
        return None if self.removed is None else self.expectation(fit.expected.fpr, fit.expected.recall, self.removed)

    def expectation(self, fpr: float, recall: float, removed: int) -> Expectation | None:
        """What a threshold is expected to do, if the rows are like those of the fit.

        Args:
            fpr: share of the benign rows that it removes.
            recall: share of the harmful rows that it removes.
            removed: rows that it removes.
        """
        before = self.fit.harmful_share if self.fit else None
        if before is None or self.kept is None or self.removed is None:
            return None
        scored = self.kept + self.removed
        harmful = before.share * scored
        left, kept = (1 - recall) * harmful, scored - removed
        lost = min(fpr * (scored - harmful), removed)
        after = min(left / kept, 1.0) if kept else 0.0
        return Expectation(lost=round(lost), left=min(round(left), kept), recall=recall, before=before, after=after)

    def public(self) -> Summary:
        """The summary as others may see it: without names of folders and files on this machine."""
        known = self.provenance
        if known is None:
            return self
        given = {key: value for key, value in known.options.items() if not _is_local(value)}
        names = {name: None for name in ("input", "model") if _is_local(getattr(known, name))}
        return replace(self, provenance=replace(known, options=given, **names))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for `saft_summary.json`."""
        plain: dict[str, Any] = to_plain(self)
        return plain


HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def public_name(name: str | None) -> str | None:
    """Hub id of a model or dataset; None for a folder on this machine, whose path says nothing to others."""
    return name if name is not None and HUB_ID.fullmatch(name) and not _is_local(name) else None


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and (
        value.startswith(("/", ".", "~")) or value.count("/") > 1 or os.path.exists(value)  # noqa: PTH110 - raises never
    )
