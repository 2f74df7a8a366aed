"""What the summary says of a score's confounds, its leverage, and its cost for refusals."""

from __future__ import annotations

import copy
import json
import logging
import re

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact, spearmanr

from saft_hf import SAFTScorer
from saft_hf.cli.table import print_summary
from saft_hf.embed import survey
from saft_hf.errors import SAFTInputError
from saft_hf.hub import model_section
from saft_hf.records import from_plain
from saft_hf.scorer.diagnostics import flagged_share
from saft_hf.summary import PoolCounts, Summary


def test_the_summary_correlates_the_score_with_what_stands_in_the_rows(
    scorer: SAFTScorer, demo_pool: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = scorer.filter(demo_pool)
    found = result.summary.confounds
    assert found.rows == len(demo_pool)
    answers = [[turn["content"] for turn in row if turn["role"] == "assistant"] for row in demo_pool["messages"]]
    lengths = [sum(map(len, turns)) for turns in answers]
    assert found.spearman["response_characters"] == pytest.approx(spearmanr(result.scores, lengths).statistic, abs=0.02)
    assert set(found.spearman) >= {"prompt_tokens", "response_tokens", "response_lists", "response_not_ascii"}
    json.dumps(result.summary.to_dict(), allow_nan=False)
    monkeypatch.setattr(survey, "SAMPLE", 50)
    part = copy.copy(scorer).filter(demo_pool).summary.confounds
    assert part.rows == 50
    assert part == copy.copy(scorer).filter(demo_pool).summary.confounds


def test_the_kept_share_of_refusals_is_told_and_warned_of(
    scorer: SAFTScorer, demo_pool: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    removed = np.isin(np.arange(len(demo_pool)), scorer.filter(demo_pool).removed_indices)
    marked = removed | (np.arange(len(demo_pool)) < 20)
    result = scorer.filter(demo_pool.add_column("refusal", marked), refusal_column="refusal")
    found = result.summary.groups["refusal"]
    assert (found.rows, found.kept) == (marked.sum(), (marked & ~removed).sum())
    assert found.warnings[0] in [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert scorer.filter(demo_pool).summary.groups == {}
    with pytest.raises(SAFTInputError, match="'refusal' is no column"):
        scorer.filter(demo_pool, refusal_column="refusal")
    with pytest.raises(SAFTInputError, match="'category' must hold booleans"):
        scorer.filter(demo_pool, refusal_column="category")


def test_what_each_source_loses_is_told_in_summary_card_and_log(
    scorer: SAFTScorer, demo_pool: Dataset, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    removed = np.isin(np.arange(len(demo_pool)), scorer.filter(demo_pool).removed_indices)
    # All of the small source is removed; of the others what is left of the removed rows.
    sources = np.where(removed & (np.cumsum(removed) <= 20), 2, np.arange(len(demo_pool)) % 2)
    names = ["a|b", "second", "small"]
    rows = demo_pool.add_column("source", sources).cast_column("source", ClassLabel(names=names))
    result = scorer.filter(rows.with_format("torch"), by="source")
    found = result.summary.by["source"]
    assert {name: (share.rows, share.removed) for name, share in found.items()} == {
        name: ((sources == at).sum(), removed[sources == at].sum()) for at, name in enumerate(names)
    }
    assert [name for name, share in found.items() if share.warnings] == ["small"]
    assert found["small"].warnings[0] in caplog.messages
    assert found["small"].warnings[0] in result.summary.warnings
    assert from_plain(Summary, json.loads(json.dumps(result.summary.to_dict()))).by == result.summary.by
    card = model_section(result.summary)
    assert "| `source` | rows | removed | share |" in card
    assert f"| `small` | {found['small'].rows} | {found['small'].rows} | 100.0 % |" in card
    assert "`a¦b`" in card
    print_summary(result.summary)
    assert "removed, source='small'" in capsys.readouterr().out
    assert result.summary.provenance.options["by"] == "source"
    assert scorer.filter(rows).summary.by == {}
    with pytest.raises(SAFTInputError, match="`by`='nope' is no column"):
        scorer.filter(rows, by="nope")
    with pytest.raises(SAFTInputError, match="by='messages' must hold plain values"):
        scorer.filter(rows, by="messages")


def test_the_text_of_rows_is_no_group(demo_model: str, store_dir: object) -> None:
    """Few short prompts are values like any other, and the summary is public."""
    asked, answers = ["Hi.", "Why?"] * 30, [f"Answer {i}." for i in range(15)] * 4
    rows = Dataset.from_dict({"prompt": asked, "completion": answers, "asked": asked})
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=1, contamination=0.1, cache_dir=store_dir).fit(rows)
    for name in ("prompt", "completion"):
        with pytest.raises(SAFTInputError, match=f"`by`='{name}' is the text of the rows.*such as a source"):
            scorer.filter(rows, by=name)
    assert set(scorer.filter(rows, by="asked").summary.by["asked"]) == {"Hi.", "Why?"}


def test_a_column_of_classes_marks_no_refusals(scorer: SAFTScorer, demo_pool: Dataset) -> None:
    """Read by number, the first of two classes would be no refusal, whatever its name."""
    rows = demo_pool.add_column("kind", [row % 2 for row in range(len(demo_pool))])
    rows = rows.cast_column("kind", ClassLabel(names=["refusal", "other"]))
    with pytest.raises(SAFTInputError, match="'kind' must hold booleans"):
        scorer.filter(rows, refusal_column="kind")


def test_copies_that_carry_a_direction_are_told(demo_model: str, demo_pool: Dataset, store_dir: object) -> None:
    few = demo_pool.select([*range(60), *[0] * 60])
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=1, contamination=0.1, cache_dir=store_dir).fit(few)
    found = scorer.filter(few).summary.leverage
    assert found.top_copies_share >= found.top_row_share > 0
    scores = scorer.filter(few).scores
    assert found.top_row_share == pytest.approx(scores.max() / scores.sum(), rel=1e-4)


def test_rows_of_plain_text_and_rows_without_a_score_are_no_obstacle(demo_model: str, store_dir: object) -> None:
    rows = Dataset.from_dict({"text": [f"This is the text number {i}, and it goes on." for i in range(40)] + [""]})
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=1, contamination=0.1, cache_dir=store_dir).fit(rows)
    found = scorer.filter(concatenate_datasets([rows, rows.select([40])])).summary
    assert found.confounds.rows == 40
    assert found.confounds.spearman["prompt_tokens"] is None


def test_the_harmful_share_is_told_only_of_uniform_labels(
    scorer: SAFTScorer, demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, store_dir: object
) -> None:
    share = scorer.summary_.fit.harmful_share
    assert share.labels == 100
    assert share.low < share.share == np.mean(~np.array(demo_labelled["is_safe"])) < share.high
    other = SAFTScorer(demo_model, method="saft", layer=2, k=1, contamination=0.2, cache_dir=store_dir)
    other.fit(demo_pool, demo_labelled, label_sampling="other")
    assert other.summary_.fit.harmful_share is None
    informative = demo_labelled.add_column("saft_purpose", ["uniform"] * 99 + ["informative"])
    other.fit(demo_pool, informative)
    assert other.summary_.fit.harmful_share is None


@given(st.integers(0, 2000), st.integers(1, 2000), st.integers(0, 2000), st.integers(1, 2000))
def test_shares_that_may_be_one_are_not_called_far_apart(above: int, rows: int, flagged: int, scored: int) -> None:
    """A warning means that no share explains both, and that one is half as large again as the other at least."""
    above, flagged = min(above, rows), min(flagged, scored)
    scores = np.where(np.arange(rows) < above, 1, 0).astype(np.float32)
    found = flagged_share(scores, 0.5, PoolCounts(rows=scored, scored=scored, unique=scored, flagged=flagged))
    assert found is not None
    assert (found.share, found.of_fit) == (above / rows, flagged / scored)
    if found.warnings:
        ratio = max(found.share, found.of_fit) / max(min(found.share, found.of_fit), 1e-12)
        assert ratio > 1.5
        _, p_value = fisher_exact([[above, rows - above], [flagged, scored - flagged]])
        assert p_value < 0.001
    elif p_value_is_tiny(above, rows, flagged, scored):
        assert min(found.share, found.of_fit) * 4 > max(found.share, found.of_fit)


def p_value_is_tiny(above: int, rows: int, flagged: int, scored: int) -> bool:
    return bool(fisher_exact([[above, rows - above], [flagged, scored - flagged]])[1] < 1e-12)


def test_other_rows_than_those_of_the_fit_are_warned_of(
    scorer: SAFTScorer, demo_pool: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    assert scorer.filter(demo_pool).summary.flagged.warnings == ()
    above = np.flatnonzero(scorer.filter(demo_pool).scores > scorer.threshold_)
    rows = concatenate_datasets([demo_pool.select(above)] * 2 + [demo_pool.select(range(20))])
    with caplog.at_level(logging.WARNING):
        summary = scorer.filter(rows).summary
    [warning] = summary.flagged.warnings
    assert re.match(r"\d+\.\d% of \d+ rows are above the threshold \S+, and \d+\.\d% of the 600 rows", warning)
    assert warning in caplog.text
    assert warning in summary.warnings
    none = scorer.filter(demo_pool, threshold=1e6).summary
    assert none.flagged.share == 0.0
    assert "0.0% of 600 rows are above the threshold 1e+06" in none.flagged.warnings[0]
