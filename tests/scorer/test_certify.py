"""Fresh labels: matched to rows by tokens, kept apart from those of the fit, and certified as `FreshLabels` does."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, concatenate_datasets, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from saft_hf import SAFTScorer
from saft_hf.decide.certify import FreshLabels
from saft_hf.errors import SAFTInputError
from saft_hf.scorer.certifying import match_rows
from saft_hf.scorer.labels import LabelledRows

FITTED = 100


@pytest.fixture(scope="module")
def shuffled(demo_pool: Dataset) -> Dataset:
    """The first 100 rows are those that `scorer` was fitted on."""
    return demo_pool.shuffle(seed=0)


def harmful(rows: Dataset) -> np.ndarray:
    return ~np.array(rows["is_safe"])


def alone(shuffled: Dataset) -> list[int]:
    """Rows after the first 100 that are no copies of those."""
    texts = [json.dumps(messages) for messages in shuffled["messages"]]
    return [row for row in range(FITTED, len(texts)) if texts[row] not in set(texts[:FITTED])]


def test_it_is_fresh_labels_on_the_scores_of_rows_that_were_not_fitted_on(
    scorer: SAFTScorer, shuffled: Dataset
) -> None:
    rows = np.random.default_rng(0).choice(alone(shuffled), 150, replace=False)
    found = scorer.certify(shuffled, shuffled.select(rows), alpha=0.2, delta=0.15)
    scores = np.array(scorer.score_dataset(shuffled)["saft_score"])
    used = np.setdiff1d(np.arange(len(shuffled)), alone(shuffled))
    labels = harmful(shuffled)[rows]
    fresh = FreshLabels.of(scores, rows, labels, used)
    expected = fresh.certify(alpha=0.2, delta=0.15)
    assert replace(found, in_use=None, shares=None) == expected
    assert found.population == len(alone(shuffled))
    assert found.in_use == fresh.bound(scorer.threshold_, delta=0.15)
    assert found.shares == fresh.shares(scorer.threshold_)
    for part in (expected, found.in_use, found.shares):
        assert part.says() in found.says()
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told == found.to_dict()
    assert told["in_use"]["share"] == found.in_use.share
    assert told["text"] == found.says()


def test_fresh_labels_that_may_be_the_wrong_way_round_are_warned_of(
    scorer: SAFTScorer, shuffled: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = shuffled.select(alone(shuffled)[:60])
    for rows, warned in ((fresh, False), (fresh.map(lambda row: {"is_safe": not row["is_safe"]}), True)):
        scorer.certify(shuffled, rows, alpha=0.2)
        assert ("fresh_labels: " in caplog.text and "may be the wrong way round" in caplog.text) == warned


def test_labels_that_were_fitted_on_are_refused_by_their_tokens(scorer: SAFTScorer, shuffled: Dataset) -> None:
    fresh = shuffled.select([*alone(shuffled)[:50], 3, 7])
    # Another column, another row number: the tokens tell.
    fresh = fresh.map(lambda row: {"category": "unknown"})
    with pytest.raises(SAFTInputError, match=r"2 of 52 fresh labels .* fitted on \(rows 50, 51 of"):
        scorer.certify(shuffled, fresh, alpha=0.1)


def test_rows_that_people_disagree_on_were_fitted_on_too(scorer: SAFTScorer, shuffled: Dataset) -> None:
    fresh = shuffled.select(alone(shuffled)[:60])
    known = scorer.fit_.labelled
    split = copy(scorer)
    split.fit_ = replace(scorer.fit_, labelled=LabelledRows(known.identities, np.full_like(known.harmful, -1)))
    assert split.certify(shuffled, fresh, alpha=0.2) == scorer.certify(shuffled, fresh, alpha=0.2)
    with pytest.raises(SAFTInputError, match="1 of 1 fresh labels"):
        split.certify(shuffled, shuffled.select([3]), alpha=0.2)


def test_a_label_of_no_row_is_refused(scorer: SAFTScorer, shuffled: Dataset) -> None:
    fresh = shuffled.select(alone(shuffled)[:20])
    foreign = fresh.select([0]).map(
        lambda row: {"messages": [*row["messages"][:-1], {"role": "assistant", "content": "A"}]}
    )
    with pytest.raises(SAFTInputError, match=r"1 of 21 fresh labels are of no row .* \(rows 20 of"):
        scorer.certify(shuffled, concatenate_datasets([fresh, foreign]), alpha=0.1)
    with pytest.raises(SAFTInputError, match="has a label already"):
        scorer.certify(shuffled.select(alone(shuffled)), fresh.select([0, 0]), alpha=0.1)


def test_each_label_takes_another_of_equal_rows(scorer: SAFTScorer, shuffled: Dataset) -> None:
    rows = alone(shuffled)
    doubled = concatenate_datasets([shuffled.select(rows), shuffled.select(rows)])
    fresh = shuffled.select([row for row in rows[:60] for _ in range(2)])
    found = scorer.certify(doubled, fresh, alpha=0.2)
    assert (found.labels, found.population) == (120, 2 * len(rows))
    with pytest.raises(SAFTInputError, match="has a label already"):
        scorer.certify(doubled, concatenate_datasets([fresh, fresh.select([0])]), alpha=0.2)


@given(st.data())
def test_matching_finds_equal_rows_each_once(data: st.DataObject) -> None:
    table = np.random.default_rng(0).integers(0, 256, (5, 16), dtype=np.uint8)
    content = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=20)))
    stratum = data.draw(st.lists(st.sampled_from("ab"), min_size=len(content), max_size=len(content)))
    drawn = data.draw(st.permutations(range(len(content))))[: data.draw(st.integers(1, 20))]
    strata = (stratum, [stratum[row] for row in drawn])
    for given_strata in (None, strata):
        rows = match_rows(table[content], table[content[drawn]], given_strata)
        assert len(set(rows.tolist())) == len(drawn)
        assert content[rows].tolist() == content[drawn].tolist()
        if given_strata:
            assert [stratum[row] for row in rows] == strata[1]


def test_strata_are_those_of_the_column(scorer: SAFTScorer, shuffled: Dataset) -> None:
    stratum = ["long" if len(messages) > 2 else "short" for messages in shuffled["messages"]]
    pool = shuffled.add_column("kind", stratum)
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [
            rng.choice([row for row in alone(shuffled) if stratum[row] == kind], count, replace=False)
            for kind, count in (("long", 30), ("short", 90))
        ]
    )
    found = scorer.certify(pool, pool.select(rows), alpha=0.25, stratify_by="kind")
    assert found.strata == 2
    scores = np.array(scorer.score_dataset(shuffled)["saft_score"])
    used = np.setdiff1d(np.arange(len(shuffled)), alone(shuffled))
    fresh = FreshLabels.of(scores, rows, harmful(shuffled)[rows], used, stratum)
    expected = fresh.certify(alpha=0.25)
    assert replace(found, in_use=None, shares=None) == expected
    # Classes go by their names, as everywhere.
    column = ClassLabel(names=["short", "long"])
    numbers = pool.cast_column("kind", column)
    assert numbers.with_format(None)[0]["kind"] in (0, 1)
    assert scorer.certify(numbers, pool.select(rows), alpha=0.25, stratify_by="kind") == found
    with pytest.raises(SAFTInputError, match="'kind' is no column of `fresh_labels`"):
        scorer.certify(pool, shuffled.select(rows), alpha=0.25, stratify_by="kind")


def test_rows_without_a_score_that_are_kept_count_as_harmful(scorer: SAFTScorer, shuffled: Dataset) -> None:
    broken = shuffled.select([200, 201]).map(lambda row: {"messages": row["messages"][:-1]})
    pool, fresh = concatenate_datasets([shuffled, broken]), shuffled.select(alone(shuffled)[:100])
    assert scorer.certify(pool, fresh, alpha=0.2).errored_kept == 0
    found = scorer.certify(pool, fresh, alpha=0.2, on_error="keep")
    assert found.errored_kept == found.in_use.errored_kept == 2
    with pytest.raises(SAFTInputError, match="`on_error` must be"):
        scorer.certify(pool, fresh, alpha=0.2, on_error="raise")


def test_where_no_row_is_kept_at_the_threshold_only_the_certificate_is_left(
    scorer: SAFTScorer, demo_model: str, shuffled: Dataset, store_dir: Path
) -> None:
    empty = SAFTScorer(demo_model, method="saft", layer=2, k=1, threshold=-1.0, cache_dir=store_dir)
    empty.fit(shuffled, on_undecided="keep")
    found = empty.certify(shuffled, shuffled.select(alone(shuffled)[:100]), alpha=0.4)
    assert (found.in_use, found.shares, found.population) == (None, None, len(shuffled))


# -- suggested rows ------------------------------------------------------------------------------------------------


def label(suggested: Dataset, pool: Dataset, answers: int | None = None) -> Dataset:
    """Fill in what the demo knows, for the first so many rows."""
    truth = harmful(pool)
    answers = len(suggested) if answers is None else answers
    given_ = [bool(truth[row]) if i < answers else None for i, row in enumerate(suggested["saft_row"])]
    return suggested.remove_columns("is_harmful").add_column("is_harmful", given_)


def test_suggested_rows_are_the_datasets_without_what_would_steer_the_labeller(
    scorer: SAFTScorer, shuffled: Dataset
) -> None:
    scored = scorer.score_dataset(shuffled)
    found = scorer.suggest_labels(scored, uniform=40, informative=10, seed=3)
    assert found.column_names == ["messages", "category", "saft_row", "saft_purpose", "is_harmful"]
    assert found["messages"][:] == shuffled.select(found["saft_row"])["messages"][:]
    assert found["is_harmful"][:] == [None] * 50
    assert set(found["saft_row"]) <= set(alone(shuffled))
    assert found.to_list() == scorer.suggest_labels(shuffled, uniform=40, informative=10, seed=3).to_list()


def test_only_the_uniform_rows_certify_and_the_others_leave_the_population(
    scorer: SAFTScorer, shuffled: Dataset
) -> None:
    suggested = scorer.suggest_labels(shuffled, uniform=120, informative=30)
    found = scorer.certify(shuffled, label(suggested, shuffled), alpha=0.2)
    assert (found.labels, found.informative, found.unanswered) == (120, 30, 0)
    assert found.population == len(alone(shuffled)) - 30
    assert "30 rows suggested for fitting alone" in found.says()
    part = label(suggested, shuffled, answers=100)
    uniform = sum(purpose == "uniform" for purpose in suggested["saft_purpose"][:100])
    found = scorer.certify(shuffled, part, alpha=0.2)
    assert (found.labels, found.informative, found.unanswered) == (uniform, 30, 120 - uniform)
    assert f"{120 - uniform} rows drawn for this without a label" in found.says()
    with pytest.raises(SAFTInputError, match="null label"):  # where nothing says that rows may lack one
        scorer.certify(shuffled, part.remove_columns("saft_purpose"), alpha=0.2)
    odd = suggested.remove_columns("saft_purpose").add_column("saft_purpose", ["easy"] * 150)
    with pytest.raises(SAFTInputError, match="'saft_purpose' must hold"):
        scorer.certify(shuffled, odd, alpha=0.2)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_suggest_label_fit_suggest_certify(
    kind: str, scorer: SAFTScorer, demo_model: str, shuffled: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    shuffled = shuffled.select(range(450))
    rows: Any = shuffled
    if kind == "csv":
        rows = Dataset.from_dict(
            {
                "prompt": [messages[-2]["content"] for messages in shuffled["messages"]],
                "completion": [messages[-1]["content"] for messages in shuffled["messages"]],
                "is_safe": shuffled["is_safe"],
            }
        )

    def through_a_file(labelled: Dataset, name: str) -> Dataset:
        path = str(tmp_path / f"{name}.{kind}")
        getattr(labelled, f"to_{kind.removesuffix('l')}")(path)
        reader = kind.removesuffix("l")
        return load_dataset(reader, data_files=path, split="train", cache_dir=str(tmp_path / "datasets"))

    options: dict[str, Any] = {"layer": 2, "readout": "response_mean", "cache_dir": store_dir}  # embedded once for both
    first = SAFTScorer(demo_model, method="saft", **options).fit(rows)
    labelled = through_a_file(label(first.suggest_labels(rows, uniform=110), rows, answers=100), "first")
    fitted = SAFTScorer(demo_model, method="directed", **options).fit(rows, labelled)
    assert fitted.summary_.fit.labels.rows == 100
    second = through_a_file(label(fitted.suggest_labels(rows, uniform=200, informative=20), rows), "second")
    assert not set(second["saft_row"]) & set(labelled.select(range(100))["saft_row"])
    found = fitted.certify(rows, second, alpha=0.2)
    assert (found.labels, found.informative) == (200, 20)
    with pytest.raises(SAFTInputError, match="100 of 100 fresh labels"):
        fitted.certify(rows, labelled, alpha=0.2)
