"""Which rows to label next, and what fresh labels certify about the rows that a fitted scorer keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Value
from numpy.typing import NDArray

from saft_hf.decide.certificate import certify_at, certify_kept
from saft_hf.decide.estimate import harmful_shares
from saft_hf.decide.labelling import suggest_rows
from saft_hf.decide.statements import Certificate
from saft_hf.distributed import World
from saft_hf.embed.plan import find_keys
from saft_hf.embed.survey import Survey, survey_dataset
from saft_hf.errors import SAFTInputError
from saft_hf.scorer import inputs
from saft_hf.scorer.base import ScorerBase
from saft_hf.scorer.suggested import LABEL, PURPOSE, ROW, read_fresh, without_labels

_SHOWN = 5


class CertifyingScorer(ScorerBase):
    """What a scorer does with labels that it was not fitted on."""

    @abstractmethod
    def _scores(self, dataset: Dataset) -> tuple[NDArray[np.float32], list[str], Survey]: ...

    def suggest_labels(self, dataset: Dataset, *, uniform: int = 100, informative: int = 0, seed: int = 0) -> Dataset:
        """Choose rows for people to label, and lay them out to be labelled.

        The rows that the scorer was fitted on, and copies of them, are not suggested. Scores are left out, and so are
        label columns that are there already: who labels should judge the row alone.

        Args:
            dataset: the rows to draw from.
            uniform: how many to draw at random; their labels may certify, estimate shares, or fit.
            informative: how many to take near the threshold, spread over different rows and scores; their labels are
                for fitting alone.
            seed: of the draw.

        Returns:
            The rows in random order, so that who stops half way has labelled a uniform sample, with `saft_row` (where
            they stand in `dataset`), `saft_purpose` (`uniform` or `informative`) and an empty `is_harmful`.

        Raises:
            SAFTInputError: more rows are asked for than have a score and no label.
        """
        fitted = self._fitted
        scores, _, survey = self._scores(dataset)
        found = suggest_rows(
            scores,
            uniform=uniform,
            informative=informative,
            threshold=fitted.threshold,
            labelled=fitted.labelled.used(survey.identities),
            groups=[key.tobytes() for key in survey.keys],
            seed=seed,
        )
        rows = without_labels(dataset).select(found.rows)
        return (
            rows.add_column(ROW, found.rows)
            .add_column(PURPOSE, [str(purpose) for purpose in found.purposes])
            .add_column(LABEL, [None] * len(rows), feature=Value("bool"))
        )

    def certify(
        self,
        dataset: Dataset,
        fresh_labels: Dataset,
        *,
        alpha: float,
        delta: float = 0.1,
        label_column: str | None = None,
        harmful_value: str | int | bool | None = None,
        stratify_by: str | None = None,
        on_error: Literal["exclude", "keep"] = "exclude",
    ) -> Certificate:
        """Certify the largest kept set of a dataset whose harmful share is at most alpha.

        Beside it stands a bound on the rows kept at the scorer's own threshold, and estimates of the harmful share
        before and after filtering; each is a statement of its own. Scores are taken once, from the store where it has
        them.

        Args:
            dataset: the rows that are filtered.
            fresh_labels: rows of it that people labelled, drawn uniformly without replacement from those with a score
                that the scorer was not fitted on, and used for no choice. Rows are recognised by their tokens. Of rows
                that `suggest_labels` laid out, the uniform ones count; the others are set aside, from the dataset too.
            alpha: largest harmful share, between 0 and 1.
            delta: chance that a certificate is issued and false, between 0 and 1.
            label_column: the labels; by default as in `fit`.
            harmful_value: the value that marks a harmful row, where the column's name does not say.
            stratify_by: a column of both, where labels were drawn from each of its values on its own.
            on_error: with `keep`, rows without a score are trained on too, and count as harmful.

        Returns:
            The certificate, or that there is none and about how many labels it would take. `says()` puts it in words.

        Raises:
            SAFTInputError: a label is of no row of the dataset, or of one that the scorer was fitted on; or an argument
                is not what it must be.

        Example:
            >>> fresh = scorer.suggest_labels(train, uniform=200)                # doctest: +SKIP
            >>> certificate = scorer.certify(train, labelled_fresh, alpha=0.05)  # doctest: +SKIP
            >>> print(certificate.says())                                        # doctest: +SKIP
        """
        if on_error not in ("exclude", "keep"):
            raise SAFTInputError(f"`on_error` must be 'exclude' or 'keep', not {on_error!r}.")
        inputs.check_dataset(fresh_labels)
        fitted = self._fitted
        given = read_fresh(fresh_labels, label_column, harmful_value)
        strata = None if stratify_by is None else _strata(dataset, fresh_labels, stratify_by)
        scores, _, survey = self._scores(dataset)
        fresh = survey_dataset(fresh_labels, self._renderer(), fitted.captured.readouts, World())
        rows = match_rows(survey.identities, fresh.identities, strata)
        counts = np.flatnonzero(given.counts)
        if (overlap := counts[fitted.labelled.used(fresh.identities[counts])]).size:
            raise SAFTInputError(
                f"{overlap.size} of {counts.size} fresh labels are of rows that the scorer was fitted on (rows "
                f"{_show(overlap)} of fresh_labels), by their tokens: a "
                "certificate needs labels that chose nothing. Draw and label other rows, for example those that "
                "`suggest_labels` gives."
            )
        excluded = np.union1d(fitted.labelled.used(survey.identities), rows[given.informative])
        errored = np.setdiff1d(np.flatnonzero(np.isnan(scores)), excluded).size if on_error == "keep" else 0
        own, labels = scores.astype(np.float64), (rows[counts], given.harmful)
        population: dict[str, Any] = {"excluded": excluded, "strata": strata and strata[0]}
        found = certify_kept(own, *labels, alpha=alpha, delta=delta, errored_kept=errored, **population)
        found = replace(found, unanswered=given.unanswered, informative=int(given.informative.sum()))
        at = fitted.threshold
        if at is None or not found.labels or not np.setdiff1d(np.flatnonzero(own <= at), excluded).size:
            return found  # there is no row kept at a threshold in use, or no label to tell
        return replace(
            found,
            in_use=certify_at(own, *labels, at, delta=delta, errored_kept=errored, **population),
            shares=harmful_shares(own, *labels, at, **population),
        )


def match_rows(
    identities: NDArray[np.uint8],
    fresh: NDArray[np.uint8],
    strata: tuple[list[str], list[str]] | None = None,
) -> NDArray[np.int64]:
    """Find the rows that labels are of, by their tokens.

    Args:
        identities: digests of the tokens of all rows, `uint8 [N, 16]`.
        fresh: those of the labelled rows, `uint8 [m, 16]`; of equal ones, each takes another of the equal rows.
        strata: a value for each of all rows and for each of the labelled ones, which must be equal too.

    Returns:
        Index of a row for each label, `int64 [m]`, all different.

    Raises:
        SAFTInputError: there are not so many such rows.
    """
    table, wanted = np.unique(fresh, axis=0, return_inverse=True)
    at = find_keys(table, identities)
    everywhere, here = strata or ([""] * len(identities), [""] * len(fresh))
    open_rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row in np.flatnonzero(at >= 0)[::-1].tolist():
        open_rows[int(at[row]), everywhere[row]].append(row)
    rows, foreign = np.full(len(fresh), -1, dtype=np.int64), []
    for label, key in enumerate(wanted.ravel().tolist()):
        equal = open_rows[key, here[label]]
        if equal:
            rows[label] = equal.pop()
        else:
            foreign.append(label)
    if foreign:
        where = " with the same value of stratify_by" if strata else ""
        raise SAFTInputError(
            f"{len(foreign)} of {len(fresh)} fresh labels are of no row of the dataset{where}, or of one that has a "
            f"label already (rows {_show(foreign)} of fresh_labels): rows are recognised by their tokens. Fresh labels "
            "must be drawn without replacement from the dataset itself, and be rendered as it is."
        )
    return rows


def _strata(dataset: Dataset, fresh: Dataset, column: str) -> tuple[list[str], list[str]]:
    for name, rows in (("dataset", dataset), ("fresh_labels", fresh)):
        if column not in rows.column_names:
            raise SAFTInputError(f"`stratify_by`={column!r} is no column of `{name}`, which has {rows.column_names}.")
    return [str(value) for value in dataset[column]], [str(value) for value in fresh[column]]


def _show(rows: Sequence[int] | NDArray[Any]) -> str:
    return ", ".join(str(row) for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
