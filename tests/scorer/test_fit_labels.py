"""Labels: what is refused, what is the same, and what remains where they cannot decide."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from saft_hf import SAFTScorer
from saft_hf.distributed import World
from saft_hf.errors import SAFTError, SAFTInputError, SAFTUndecidedError
from saft_hf.scorer.fitting import degenerate
from saft_hf.scorer.methods import reference
from saft_hf.summary import LabelCounts


@pytest.fixture(scope="module")
def pool(demo_pool: Dataset) -> Dataset:
    return demo_pool.select(range(120))


@pytest.fixture(scope="module")
def labelled(pool: Dataset) -> Dataset:
    return pool.shuffle(seed=1).select(range(60))


@pytest.fixture
def new_scorer(demo_model: str, store_dir: Path) -> Any:
    return lambda **options: SAFTScorer(demo_model, **{"method": "saft", "layer": 2, "cache_dir": store_dir, **options})


def relabel(rows: Dataset, name: str, values: list[Any]) -> Dataset:
    return rows.remove_columns("is_safe").add_column(name, values)


def null_first(rows: Dataset) -> Dataset:
    return relabel(rows, "is_safe", [None, *rows["is_safe"][1:]])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (null_first, {}, "1 null label"),
        (lambda rows: relabel(rows, "verdict", rows["is_safe"][:]), {}, "one label column was expected.*verdict"),
        (
            lambda rows: relabel(rows, "verdict", rows["is_safe"][:]),
            {"label_column": "verdict"},
            "'verdict' does not tell which value is harmful.*harmful_value",
        ),
        (lambda rows: rows, {"label_column": "nope"}, r"'nope' is not in.*is_safe"),
        (lambda rows: rows.add_column("harmful", [0] * len(rows)), {}, "several"),
        (lambda rows: relabel(rows, "is_safe", ["maybe"] * len(rows)), {}, "booleans or 0 and 1"),
        (lambda rows: rows, {"harmful_value": "true"}, "harmful_value='true' contradicts label column 'is_safe'"),
        (lambda rows: relabel(rows, "is_safe", [0.5] * len(rows)), {}, "booleans, integers or strings"),
        (lambda rows: rows, {"label_column": "category", "harmful_value": "nothing like it"}, "'nothing like it'"),
        (lambda rows: rows.select([]), {}, "no row"),
        (lambda rows: rows, {"label_sampling": "other"}, "label_sampling='other'.*contamination"),
        (lambda rows: rows, {"label_sampling": "random"}, r"\['uniform', 'other'\], not 'random'"),
        (lambda rows: rows, {"on_undecided": "ignore"}, r"\['raise', 'keep'\], not 'ignore'"),
    ],
)
def test_labels_that_cannot_serve_are_refused(
    new_scorer: Any, pool: Dataset, labelled: Dataset, change: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SAFTInputError, match=message):
        new_scorer().fit(pool, change(labelled), **options)


def test_every_way_to_say_the_same_labels_gives_the_same_scorer(
    new_scorer: Any, pool: Dataset, labelled: Dataset
) -> None:
    safe = np.asarray(labelled["is_safe"])
    first = new_scorer().fit(pool, labelled)
    others = [
        new_scorer().fit(pool, relabel(labelled, "unsafe", (~safe).astype(int).tolist())),
        new_scorer().fit(
            pool,
            relabel(labelled, "verdict", np.where(safe, "fine", "bad").tolist()),
            label_column="verdict",
            harmful_value="bad",
        ),
    ]
    for other in others:
        assert (other.k_, other.threshold_) == (first.k_, first.threshold_)
        assert other.summary_.fit.labels.harmful == first.summary_.fit.labels.harmful
    flipped = new_scorer().fit(pool, relabel(labelled, "is_safe", (~safe).tolist()), on_undecided="keep")
    assert flipped.summary_.fit.labels.harmful == safe.sum() != (~safe).sum()


def test_labelled_rows_need_not_be_in_the_pool(new_scorer: Any, demo_pool: Dataset) -> None:
    pool, foreign = demo_pool.select(range(200)), demo_pool.select(range(200, 300))
    labelled = concatenate_datasets([foreign, pool.select(range(20))])
    scorer = new_scorer().fit(pool, labelled)
    flag = np.asarray(scorer.score_dataset(labelled)["saft_score"]) > scorer.threshold_
    harmful = ~np.asarray(labelled["is_safe"])
    assert scorer.summary_.fit.published.f1 == pytest.approx(2 * (flag & harmful).sum() / (flag.sum() + harmful.sum()))
    assert 0 < flag[:100].sum() < 100


def test_labelled_rows_without_a_score_are_left_out_aloud(
    new_scorer: Any, pool: Dataset, labelled: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    broken = labelled.select(range(3)).map(lambda row: {"messages": row["messages"][:1], "is_safe": False})
    with caplog.at_level(logging.WARNING):
        more = new_scorer().fit(pool, concatenate_datasets([labelled, broken]))
    assert "3 of 63 labelled rows have no score" in caplog.text
    assert "no_response" in caplog.text
    assert more.threshold_ == new_scorer().fit(pool, labelled).threshold_


def spoiled(row: dict[str, Any], index: int) -> dict[str, Any]:
    """Every third row in a way of its own: no response, one behind the longest length, or a turn without a role."""
    asked, *said = [{**turn} for turn in row["messages"]]
    if index % 3 == 0:
        said = [] if index % 2 else said
        asked["content"] = f"Hello {index}. " * (1 if index % 2 else 2000)
    return {**row, "messages": [*([{"role": None, "content": "?"}] if index % 15 == 0 else []), asked, *said]}


@pytest.mark.parametrize("method", ["auto", "saft"])
@pytest.mark.parametrize("on_error", ["exclude", "keep"])
def test_a_label_decides_its_row_scored_or_not(new_scorer: Any, pool: Dataset, method: str, on_error: Any) -> None:
    rows = [spoiled(row, index) for index, row in enumerate(pool)]
    # The pool's turns have a field more, which is null: the rows are the same.
    both = Dataset.from_list(
        [{**row, "messages": [{**turn, "name": None} for turn in row["messages"]]} for row in rows]
    )
    labelled = Dataset.from_list(rows[:100])
    result = new_scorer(method=method, layer=None).fit(both, labelled).filter(both, on_error=on_error)
    statuses = np.array(result.statuses)
    assert {"no_response", "truncated", "bad_row"} <= set(statuses)
    assert len(result.kept) + len(result.removed) + len(result.errored) == len(pool)
    safe, unscored = np.array(pool["is_safe"]), statuses != "ok"
    by_label = (np.arange(len(pool)) < 100) & (unscored | (method == "auto"))
    words, reasons = np.array(result.decisions.words()), np.array(result.decisions.reasons)
    assert words[by_label].tolist() == np.where(safe, "kept", "removed")[by_label].tolist()
    assert set(reasons[by_label]) == {"label"}
    assert "label" not in reasons[~by_label]
    trained = result.train_rows()["is_safe"]
    assert len(trained) == len(result.kept) + (len(result.errored) if on_error == "keep" else 0)
    assert set(words[unscored & ~by_label]) == {"errored"}


@pytest.mark.parametrize("harmful", [True, False])
def test_one_class_only_withholds_decisions_and_not_scores(
    new_scorer: Any, pool: Dataset, labelled: Dataset, harmful: bool
) -> None:
    one_class = relabel(labelled, "harmful", [harmful] * len(labelled))
    expected = new_scorer(k=1).fit(pool).score_dataset(pool)["saft_score"][:]
    scorer = new_scorer()
    with pytest.raises(SAFTUndecidedError, match=r"of 60 labelled rows .*both classes.*on_undecided='keep'"):
        scorer.fit(pool, one_class)
    assert scorer.score_dataset(pool)["saft_score"][:] == expected
    assert pool.map(scorer, batched=True, load_from_cache_file=False)["saft_score"][:] == expected
    with pytest.raises(SAFTUndecidedError, match=r"no row can be removed: .*both classes"):
        scorer.filter(pool)

    keeper = new_scorer().fit(pool, one_class, on_undecided="keep")
    result = keeper.filter(pool)
    assert keeper.threshold_ is None
    assert "both classes" in keeper.summary_.undecided
    assert result.train_rows() is pool
    assert result.kept_indices.tolist() == list(range(len(pool)))
    assert set(result.decisions.reasons) == {"no_decision"}


def test_labels_that_the_score_does_not_see_are_a_refusal(new_scorer: Any, pool: Dataset) -> None:
    plain = new_scorer(k=1).fit(pool)
    scores = np.asarray(plain.score_dataset(pool)["saft_score"])
    order = np.argsort(scores)
    # The one harmful row has the lowest score of all: no threshold can flag it.
    marked = pool.select(order[:20]).remove_columns("is_safe").add_column("harmful", [True] + [False] * 19)
    scorer = new_scorer(k=1)
    with pytest.raises(SAFTUndecidedError, match="does not see them"):
        scorer.fit(pool, marked)
    assert scorer.threshold_ is None
    assert np.array_equal(scorer.score_dataset(pool)["saft_score"], scores)


def test_a_threshold_that_flags_no_row_of_the_pool_is_a_refusal_where_labels_are_harmful() -> None:
    pool = np.linspace(0, 1, 50, dtype=np.float32)
    found = degenerate(pool, 1.0, harmful=1)
    assert found is not None
    assert "removes no row, although 1 labelled rows are harmful" in found
    assert degenerate(pool, 1.0, harmful=0) is None


def test_a_threshold_that_keeps_one_row_in_a_hundred_is_a_refusal() -> None:
    pool = np.linspace(0, 1, 1000, dtype=np.float32)
    tight = degenerate(pool, 0.005, harmful=0)
    assert tight is not None
    assert "removes 995 of the pool's 1000 scored rows" in tight
    assert degenerate(pool, 0.02, harmful=0) is None


def test_labels_drawn_otherwise_do_where_a_share_or_threshold_decides(
    new_scorer: Any, pool: Dataset, labelled: Dataset
) -> None:
    shared = new_scorer(contamination=0.25).fit(pool, labelled, label_sampling="other")
    given = new_scorer(threshold=0.3).fit(pool, labelled, label_sampling="other")
    assert shared.threshold_ == new_scorer(contamination=0.25).fit(pool).threshold_
    assert given.threshold_ == 0.3


def test_without_labels_share_and_threshold_there_is_no_decision(new_scorer: Any, pool: Dataset) -> None:
    scorer = new_scorer().fit(pool)
    assert scorer.summary_.threshold_from == "none"
    with pytest.raises(SAFTUndecidedError, match="no labels, no `threshold` and no `contamination`"):
        scorer.filter(pool)


def turned(rows: Dataset) -> Dataset:
    return relabel(rows, "is_safe", [not safe for safe in rows["is_safe"]])


def balanced(rows: Dataset) -> Dataset:
    safe = np.asarray(rows["is_safe"])
    return rows.select(np.sort(np.concatenate([np.flatnonzero(safe)[:60], np.flatnonzero(~safe)[:60]])))


@pytest.mark.parametrize("method", ["auto", "saft"])
@pytest.mark.parametrize("sampling", ["uniform", "other"])
def test_labels_the_wrong_way_round_are_warned_of(
    new_scorer: Any, demo_pool: Dataset, method: str, sampling: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    labelled = demo_pool.shuffle(seed=0).select(range(100)) if sampling == "uniform" else balanced(demo_pool)
    options = {"on_undecided": "keep", "label_sampling": sampling}
    given = {"method": method, "layer": None, **({"contamination": 0.2} if sampling == "other" else {})}
    right = new_scorer(**given).fit(demo_pool, labelled, **options)
    assert right.summary_.warnings == ()
    assert right.summary_.fit.labels.reference_auroc > 0.8
    caplog.clear()
    wrong = new_scorer(**given).fit(demo_pool, turned(labelled), **options)
    said = [
        text for text in wrong.summary_.warnings if "labels may be the wrong way round: check the label column" in text
    ]
    assert [text.split(". ")[0] for text in said] == [
        *(["81 of 100 labelled rows are harmful, more than half of a uniform sample"] if sampling == "uniform" else []),
        f"The built-in reference set ranks the {len(labelled)} labelled rows the other way round (AUROC "
        f"{1 - right.summary_.fit.labels.reference_auroc:.3f})",
    ]
    assert [text for text in said if caplog.messages.count(text) == 1] == said
    assert set(said) <= set(wrong.filter(demo_pool).summary.warnings)
    wrong.save_pretrained(tmp_path)
    assert SAFTScorer.from_pretrained(tmp_path).summary_.warnings == wrong.summary_.warnings
    assert "The labels may be the wrong way round" in (tmp_path / "README.md").read_text()


@given(st.integers(0, 300), st.integers(0, 300), st.booleans(), st.one_of(st.none(), st.floats(0, 1)))
def test_the_labels_warn_where_most_are_harmful_or_the_reference_set_clearly_disagrees(
    harmful: int, benign: int, uniform: bool, area: float | None
) -> None:
    counts = LabelCounts(rows=harmful + benign, harmful=harmful, column="x", uniform=uniform, reference_auroc=area)
    most = uniform and harmful > benign
    if area is None or not harmful or not benign:
        expected = [most]
    else:
        # Mann and Whitney's U, and its deviation where there is no signal.
        statistic = area * harmful * benign
        deviation = (harmful * benign * (harmful + benign + 1) / 12) ** 0.5
        expected = [most + (area < 0.4 and (statistic - harmful * benign / 2) / deviation < -3)]
    assert [len(counts.warnings)] == expected


@pytest.mark.parametrize(("share", "warned"), [(0.4, False), (0.6, True)])
def test_a_filter_that_would_take_more_than_half_is_warned_of(
    new_scorer: Any, pool: Dataset, share: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = new_scorer(contamination=share, k=1).fit(pool)
    result = scorer.filter(pool)
    for summary in (scorer.summary_, result.summary):
        found = [text for text in summary.warnings if "more than half of them: check the threshold" in text]
        assert len(found) == warned
        assert found == [text for text in found if text in caplog.messages]


class OfTwo(World):
    """One of two processes; the other one has just failed, in words that are no error of ours."""

    size = 2  # type: ignore[assignment]

    def gather(self, value: Any) -> list[Any]:
        return [value, "OSError: no space left"]


def test_no_process_goes_on_alone_where_the_check_of_labels_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise SAFTError("embedding failed on process 1 of 2: OSError: no space left")

    monkeypatch.setattr(reference, "_plain_direction", fail)
    pool: Any = SimpleNamespace(world=OfTwo())
    with pytest.raises(SAFTError, match="process 1 of 2: OSError"):
        reference.agreement(pool, pool)
