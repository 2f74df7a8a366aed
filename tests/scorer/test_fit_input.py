"""Pools, options and models that are not what they should be."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from scorer_kit import Forwards, demo_tokenizer, tokens_and_spans

from saft_hf import SAFTScorer
from saft_hf.errors import SAFTArtifactError, SAFTError, SAFTInputError
from saft_hf.render import RenderConfig


@pytest.fixture(scope="module")
def pool(demo_pool: Dataset) -> Dataset:
    return demo_pool.select(range(80))


@pytest.fixture
def new_scorer(demo_model: str, store_dir: Path) -> Any:
    return lambda **options: SAFTScorer(demo_model, **{"method": "saft", "layer": 2, "cache_dir": store_dir, **options})


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda pool: pool.select([]), {}, "empty"),
        (lambda pool: DatasetDict(train=pool, test=pool), {}, r"one split.*\['train', 'test'\]"),
        (lambda pool: pool.to_iterable_dataset(), {}, "fit_rows"),
        (lambda pool: IterableDataset.from_generator(lambda: iter([])), {"fit_rows": 5}, "empty"),
        (lambda pool: pool.to_list(), {}, "not list"),
        (lambda pool: pool.with_transform(lambda batch: batch), {}, "with_transform"),
        (lambda pool: pool, {"fit_rows": 1}, "`fit_rows` must be at least 2, not 1"),
        (lambda pool: pool.select_columns(["is_safe"]), {}, r"found \['is_safe'\]; expected 'messages'"),
        (
            lambda pool: pool.select_columns(["category"]).rename_column("category", "prompt"),
            {},
            "'prompt' but no 'completion'",
        ),
        (lambda pool: pool.select([0]), {}, "at least 2"),
        (lambda pool: pool.select([3] * 25), {}, "all 25 rows of the pool have the same vector"),
    ],
)
def test_pools_that_cannot_be_fitted_on(
    new_scorer: Any, pool: Dataset, change: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SAFTInputError, match=message):
        new_scorer().fit(change(pool), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 5}, "layer=5: this model has L=4 layers"),
        ({"layer": -1}, "layer=-1"),
        ({"layer": 0}, "same vector"),  # at the embeddings every response starts after the same token
        ({"k": 0}, "k must be at least 1"),
        ({"k": 30}, r"`k`=30 is more than the \d+ directions"),
        ({"readout": "response_middle"}, "`readout` must be one of .*response_start.*not 'response_middle'"),
        ({"method": "magic"}, "`method` must be one of .*'saft'.*'magic'"),
        ({"contamination": 25}, "`contamination` must be between 0 and 1, not 25"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "0.5"}, r"`threshold` must be a number, not '0\.5' \(str\)"),
        ({"contamination": "0.1"}, "`contamination` must be a number"),
        ({"contamination": True}, "`contamination` must be a number"),
        ({"layer": "2"}, "`layer` must be a whole number"),
        ({"k": 1.5}, "`k` must be a whole number"),
        ({"max_length": "512"}, "max_length is '512'; it must be a whole number"),
        ({"max_length": 0}, "max_length is 0"),
        ({"revision": None, "dtype": "float31"}, "float31"),
        ({"processing_class": 7}, "`processing_class` must be a tokenizer"),
    ],
)
def test_options_that_cannot_be_used(new_scorer: Any, pool: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SAFTInputError, match=message):
        new_scorer(**options).fit(pool.select(range(20)))


def test_the_default_is_the_middle_layer_and_fewer_k_where_the_rank_is_low(
    demo_model: str, pool: Dataset, store_dir: Path
) -> None:
    scorer = SAFTScorer(demo_model, method="saft", cache_dir=store_dir).fit(
        pool.select([0, 1, 2]), pool.select([0, 1, 2])
    )
    assert scorer.layers_ == (2,)
    assert scorer.readouts_ == ("response_start",)
    assert list(scorer.summary_.fit.published.f1_by_k) == ["1", "2"]  # three rows span two directions


def test_rows_longer_than_max_length_have_a_status_and_no_score(new_scorer: Any, pool: Dataset) -> None:
    tokenizer = demo_tokenizer()
    starts = np.asarray([tokens_and_spans(tokenizer, row["messages"])[1][0][0] for row in pool])
    limit = int(np.median(starts))
    scorer = new_scorer(max_length=limit, contamination=0.1).fit(pool)
    scored = scorer.score_dataset(pool)
    too_long = starts >= limit
    assert 0 < too_long.sum() < len(pool)
    assert [status == "truncated" for status in scored["saft_status"]] == too_long.tolist()
    assert np.isnan(np.asarray(scored["saft_score"])).tolist() == too_long.tolist()
    assert scorer.summary_.fit.pool.unscored == {"truncated": int(too_long.sum())}
    result = scorer.filter(pool)
    assert result.errored_indices.tolist() == np.flatnonzero(too_long).tolist()
    with pytest.raises(SAFTInputError, match=r"no row of the pool can be read at `response_start`.*truncated"):
        new_scorer(max_length=2).fit(pool)


def test_rows_without_a_rendering_have_a_status_and_no_score(new_scorer: Any, pool: Dataset) -> None:
    scorer = new_scorer(contamination=0.1).fit(pool)
    good, user = pool[0]["messages"], pool[0]["messages"][:1]
    rows = [good, user, None, [*user, {"role": "assistant", "content": ""}], good]
    batch = scorer({"messages": rows})
    assert [str(s) for s in batch["saft_status"]] == ["ok", "no_response", "bad_row", "empty_response", "ok"]
    assert np.isnan(batch["saft_score"]).tolist() == [False, True, True, True, False]
    whole = scorer.score_dataset(Dataset.from_dict({"messages": rows}))
    assert whole["saft_status"][:] == batch["saft_status"]
    assert np.array_equal(whole["saft_score"], batch["saft_score"], equal_nan=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: {"messages": json.dumps(row["messages"])}, "Row 0 is bad_row: .*'messages' is a str.*json.loads"),
        (lambda row: {"messages": {"role": ["user"], "content": ["Why?"]}}, "'messages' is a dict of list"),
        (lambda row: {"messages": row["messages"][:1]}, "Row 0 is no_response: no message has the role 'assistant'"),
        (lambda row: {"text": row["messages"][0]["content"]}, r"Row 0 is no_response_start\. Plain text has no"),
    ],
)
def test_where_no_row_can_be_read_the_first_ones_reason_is_told(
    change: Any, says: str, new_scorer: Any, scorer: SAFTScorer, pool: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Dataset.from_list([change(row) for row in pool.select(range(20)).to_list()])
    for call in (lambda: new_scorer(readout="response_start").fit(bad), lambda: scorer.filter(bad, threshold=1.0)):
        with pytest.raises(SAFTError, match=rf"20.*{says}") as raised:
            call()
        assert ("Plain text" in str(raised.value)) == ("Plain text" in says)
    with caplog.at_level(logging.WARNING):
        assert set(scorer.score_dataset(bad)["saft_status"]) != {"ok"}
    assert "None of 20 rows can be scored. Row 0 is" in caplog.text


def test_plain_text_is_read_at_the_mean_and_says_so(
    new_scorer: Any, pool: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    text = pool.map(lambda row: {"text": row["messages"][-1]["content"]}).select_columns(["text"])
    with caplog.at_level(logging.WARNING):
        scorer = new_scorer(k=1).fit(text)
    assert scorer.readouts_ == ("response_mean",)
    assert "`response_mean` over the whole text" in caplog.text
    with pytest.raises(SAFTInputError, match="Plain text has no response start"):
        new_scorer(readout="response_start").fit(text)


def test_conversations_without_a_chat_template_are_refused(new_scorer: Any, pool: Dataset) -> None:
    tokenizer = demo_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(SAFTInputError, match="no chat template"):
        new_scorer(processing_class=tokenizer).fit(pool)


def test_another_template_or_model_than_the_fitted_one_is_refused(
    scorer: SAFTScorer, pool: Dataset, tmp_path: Path
) -> None:
    scorer.save_pretrained(tmp_path)
    tokenizer = demo_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|' + m['role']", "'<|role ' + m['role']")
    other = SAFTScorer.from_pretrained(tmp_path, processing_class=tokenizer, cache_dir=tmp_path / "store")
    for call in (other.score_dataset, other.filter, lambda rows: other(rows[:])):
        with pytest.raises(SAFTArtifactError, match="another chat template or tokenizer"):
            call(pool)


def test_map_without_batched_is_refused(scorer: SAFTScorer, pool: Dataset) -> None:
    with pytest.raises(SAFTInputError, match="batched=True"):
        scorer(pool[0])


def test_a_stream_is_told_how_to_be_scored(scorer: SAFTScorer, pool: Dataset) -> None:
    with pytest.raises(SAFTInputError, match=r"stream\.map\(scorer, batched=True\)"):
        scorer.score_dataset(pool.to_iterable_dataset())


def test_equal_rows_are_embedded_once(
    demo_model: str, pool: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, often = Forwards(monkeypatch), pool.select([*range(80)] * 4)
    SAFTScorer(demo_model, method="saft", layer=2, cache_dir=tmp_path / "a").fit(pool)
    needed = once.count
    SAFTScorer(demo_model, method="saft", layer=2, cache_dir=tmp_path / "b").fit(often)
    assert 0 < needed == once.count - needed


def test_what_a_formatting_func_returns_is_scored(new_scorer: Any, pool: Dataset) -> None:
    text = pool.map(lambda row: {"text": row["category"] + ": " + row["messages"][-1]["content"]})
    plain = text.select_columns(["text"])
    bare = pool.map(lambda row: {"answer": row["messages"][-1]["content"]}).select_columns(["answer", "category"])
    options = {"k": 1, "readout": "response_mean", "render": RenderConfig(max_length=64)}
    ours = new_scorer(**options, formatting_func=lambda row: row["category"] + ": " + row["answer"]).fit(bare)
    assert (
        ours.score_dataset(bare)["saft_score"][:]
        == new_scorer(**options).fit(plain).score_dataset(plain)["saft_score"][:]
    )


def test_a_threshold_that_is_text_is_refused_wherever_it_is_given(scorer: SAFTScorer, pool: Dataset) -> None:
    fresh = pool.select(range(5))

    def certify(rows: Dataset, **options: Any) -> Any:
        return scorer.certify(rows, fresh, alpha=0.1, **options)

    for call in (scorer.filter, scorer.suggest_labels, certify):
        with pytest.raises(SAFTInputError, match=r"`threshold` must be a number, not '0\.5' \(str\)"):
            call(pool, threshold="0.5")
