"""`directed` and `auto`: what is learned from labels, against the same procedure on plain arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scorer_kit import plain_vectors

from saft_hf import SAFTScorer
from saft_hf.decide import ThresholdAim, threshold_for_aim
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.score import (
    COMPONENTS,
    Frame,
    LinearScore,
    Moments,
    PublishedScore,
    fit_direction,
    principal_subspace,
    with_differences,
)

LAYERS, READOUTS = (2, 3), ("response_start", "response_mean")


@pytest.fixture(scope="module")
def pool(demo_pool: Dataset) -> Dataset:
    return demo_pool.select(range(240))


@pytest.fixture(scope="module")
def labelled(pool: Dataset) -> Dataset:
    return pool.shuffle(seed=3).select(range(100))


@pytest.fixture(scope="module")
def vectors(pool: Dataset) -> dict[str, np.ndarray]:
    return {f"{layer}.{readout}": plain_vectors(pool, layer, readout) for layer in LAYERS for readout in READOUTS}


@pytest.fixture
def new_scorer(demo_model: str, store_dir: Path) -> Any:
    return lambda **options: SAFTScorer(demo_model, **{"cache_dir": store_dir, **options})


def scores_of(scorer: SAFTScorer, rows: Dataset) -> np.ndarray:
    return np.asarray(scorer.score_dataset(rows)["saft_score"], dtype=np.float32)


def test_auto_is_the_direction_on_the_same_vectors(
    new_scorer: Any, pool: Dataset, labelled: Dataset, vectors: dict[str, np.ndarray]
) -> None:
    scorer = new_scorer().fit(pool, labelled)
    everything = with_differences(vectors)
    frame = Frame.of({name: principal_subspace(Moments.of(x), COMPONENTS) for name, x in everything.items()})
    at = frame.coordinates(vectors)
    texts = [str(row["messages"]) for row in pool]
    rows = [texts.index(str(row["messages"])) for row in labelled]
    harmful = ~np.asarray(labelled["is_safe"])
    asked = [str(row["messages"][:-1]) for row in labelled]
    prompts = [asked.index(prompt) for prompt in asked]
    direction = fit_direction(frame, Moments.of(at), at[rows], harmful, prompts)
    assert scorer.method_ == "auto"
    assert scorer.layers_ == LAYERS
    test = scorer.summary_.fit.test
    assert test.auroc == pytest.approx(direction.auroc, abs=0.02)
    assert test.p_value == pytest.approx(direction.p_value, abs=0.01)
    assert test.weights == pytest.approx(direction.feature_weights, abs=0.02)
    plain = frame.score(direction.weights)(vectors)
    assert np.abs(scores_of(scorer, pool) - plain).max() <= 1e-3 * np.abs(plain).max()
    cut = threshold_for_aim(ThresholdAim(), direction.out_of_fold, harmful, plain).threshold
    assert scorer.threshold_ == pytest.approx(cut, abs=0.1)  # in standard deviations of the score


def test_auto_tells_harmful_rows_apart_where_the_published_score_does_less(
    new_scorer: Any, demo_pool: Dataset, demo_labelled: Dataset
) -> None:
    def area(scorer: SAFTScorer) -> float:
        scores, harmful = scores_of(scorer, demo_pool), ~np.asarray(demo_pool["is_safe"])
        return float((scores[harmful][:, None] > scores[~harmful]).mean())

    assert area(new_scorer().fit(demo_pool, demo_labelled)) > area(
        new_scorer(method="saft").fit(demo_pool, demo_labelled)
    )


def test_map_single_rows_and_a_saved_scorer_give_the_same_scores(
    new_scorer: Any, pool: Dataset, labelled: Dataset, tmp_path: Path
) -> None:
    scorer = new_scorer(method="directed").fit(pool, labelled)
    expected = scores_of(scorer, pool)
    mapped = pool.map(scorer, batched=True, batch_size=7, load_from_cache_file=False)
    assert np.array_equal(np.asarray(mapped["saft_score"], np.float32), expected)
    assert np.array_equal(np.concatenate([scorer(pool[i : i + 1])["saft_score"] for i in range(5)]), expected[:5])
    scorer.save_pretrained(tmp_path)
    again = SAFTScorer.from_pretrained(tmp_path, cache_dir=scorer.cache_dir, trust_labels=True)
    assert np.array_equal(scores_of(again, pool), expected)
    assert again.summary_ == scorer.summary_
    assert again.filter(pool).decisions.words() == scorer.filter(pool).decisions.words()
    assert isinstance(again.fit_.score, LinearScore)  # type: ignore[union-attr]


def test_labelled_rows_are_decided_by_their_labels(new_scorer: Any, pool: Dataset, labelled: Dataset) -> None:
    scorer = new_scorer(method="directed").fit(pool, labelled)
    result = scorer.filter(pool)
    texts = {str(row["messages"]): row["is_safe"] for row in labelled}
    for row, decision, reason in zip(pool, result.decisions.words(), result.decisions.reasons, strict=True):
        if (text := str(row["messages"])) in texts:
            assert (decision, reason) == ("kept" if texts[text] else "removed", "label")
        else:
            assert reason == "score"
    published = new_scorer(method="saft").fit(pool, labelled).filter(pool)
    assert "label" not in published.decisions.reasons


def test_rows_that_people_disagree_on_are_decided_by_their_score(new_scorer: Any, pool: Dataset) -> None:
    twice = Dataset.from_list([*pool.select(range(100)).to_list(), {**pool[0], "is_safe": not pool[0]["is_safe"]}])
    result = new_scorer(method="directed").fit(pool, twice).filter(pool)
    assert result.decisions.reasons[:3] == ["score", "label", "label"]


def test_shuffled_labels_are_refused_and_scores_are_written(new_scorer: Any, pool: Dataset, labelled: Dataset) -> None:
    rng = np.random.default_rng(0)
    noise = labelled.remove_columns("is_safe").add_column("is_safe", rng.permutation(labelled["is_safe"]).tolist())
    scorer = new_scorer()
    with pytest.raises(SAFTUndecidedError, match=r"labels dealt out at random.*more labels"):
        scorer.fit(pool, noise)
    assert np.isfinite(scores_of(scorer, pool)).all()
    assert scorer.threshold_ is None
    kept = new_scorer().fit(pool, noise, on_undecided="keep").filter(pool)
    assert kept.train_rows() is pool
    assert set(kept.decisions.reasons) == {"no_decision"}
    assert "dealt out at random" in kept.summary.undecided


@pytest.mark.parametrize("method", ["auto", "directed"])
def test_labels_of_one_class_give_published_scores_and_no_decision(
    new_scorer: Any, pool: Dataset, labelled: Dataset, method: str
) -> None:
    benign = labelled.filter(lambda row: row["is_safe"])
    scorer = new_scorer(method=method)
    with pytest.raises(SAFTUndecidedError, match=r"0 of \d+ labelled rows are harmful"):
        scorer.fit(pool, benign)
    assert isinstance(scorer.fit_.score, PublishedScore)
    # Other readouts are read beside it, so the batches, and the last bits, are others.
    expected = scores_of(new_scorer(method="saft", k=1).fit(pool), pool)
    assert np.abs(scores_of(scorer, pool) - expected).max() <= 1e-5 * expected.max()


def test_aims_move_the_threshold_the_way_they_say(
    new_scorer: Any, pool: Dataset, labelled: Dataset, tmp_path: Path
) -> None:
    def removed(aim: str) -> int:
        return len(new_scorer(method="directed").fit(pool, labelled, aim=aim).filter(pool).removed_indices)

    assert removed("fpr=0.02") < removed("fpr=0.2")
    assert removed("recall=0.5") < removed("recall=0.95")
    scorer = new_scorer(method="directed", contamination=0.2).fit(pool, labelled)
    assert scorer.summary_.threshold_from == "contamination"
    assert scorer.summary_.fit.pool.flagged == 48
    sure, some = "fpr=0.05@0.9", labelled.select(range(50))
    assert removed(sure) <= removed("fpr=0.05")
    for method in ("directed", "saft"):
        held = new_scorer(method=method).fit(pool, labelled, aim=sure)
        held.save_pretrained(tmp_path / method)
        again = SAFTScorer.from_pretrained(tmp_path / method)
        assert again.summary_.threshold_from == held.summary_.threshold_from == sure
        few = new_scorer(method=method)
        with pytest.raises(SAFTUndecidedError, match=r"benign labelled rows .* needs 45: label about"):
            few.fit(pool, some, aim=sure)
        assert few.threshold_ is None
        assert np.isfinite(scores_of(few, pool)).all()
    published = new_scorer(method="saft").fit(pool, labelled, aim="fpr=0.1")
    assert published.summary_.threshold_from == "fpr=0.1"


def test_named_layers_and_readouts_are_the_only_ones_read(new_scorer: Any, pool: Dataset, labelled: Dataset) -> None:
    one = new_scorer(layer=3, readout="response_mean").fit(pool, labelled)
    assert set(one.summary_.fit.test.weights) == {"3.response_mean"}
    both = new_scorer(layer=3).fit(pool, labelled)
    assert set(both.layers_) == {3}
    text = pool.map(lambda row: {"text": row["messages"][-1]["content"]}, remove_columns=["messages"])
    plain = new_scorer(method="directed").fit(text, text.select(range(100)), on_undecided="keep")
    assert plain.readouts_ == ("response_mean", "response_end")


@pytest.mark.parametrize(
    ("options", "fit", "message"),
    [
        ({"method": "auto"}, {}, "learns from labels: give `labelled`"),
        ({"method": "directed", "k": 2}, {"labelled": True}, "`k`=2 belongs to the published score"),
        ({"threshold": 1.0}, {"labelled": True, "aim": "f1"}, "decides alone"),
        ({"method": "reference"}, {"labelled": True, "aim": "f1"}, "comes from the reference set"),
        ({"k": 2}, {}, "`k`=2 belongs to the published score"),
        ({}, {"aim": "recall=0.9"}, "chooses a threshold on labels"),
        ({}, {"labelled": True, "aim": "precision=0.9"}, "aim must be"),
        ({}, {"labelled": True, "aim": "f1", "label_sampling": "other"}, "F1 means something only where labels"),
    ],
)
def test_what_does_not_go_together_is_refused(
    new_scorer: Any, pool: Dataset, labelled: Dataset, options: dict[str, Any], fit: dict[str, Any], message: str
) -> None:
    given = {**fit, **({"labelled": labelled} if fit.get("labelled") else {})}
    with pytest.raises(SAFTInputError, match=message):
        new_scorer(**options).fit(pool, **given)


def test_auto_adds_the_score_of_a_reference_set_that_was_given(
    new_scorer: Any,
    demo_pool: Dataset,
    pool: Dataset,
    labelled: Dataset,
    tmp_path: Path,
) -> None:
    others = demo_pool.select(range(240, 600))
    alone, both = new_scorer().fit(pool, labelled), new_scorer(reference=others).fit(pool, labelled)
    assert "reference" not in alone.summary_.fit.test.weights
    weights = both.summary_.fit.test.weights
    assert 0 < weights["reference"] < 1
    assert sum(weights.values()) == pytest.approx(1)
    expected = scores_of(both, pool)
    assert not np.allclose(expected, scores_of(alone, pool))
    assert np.array_equal(np.asarray(pool.map(both, batched=True)["saft_score"], np.float32), expected)
    both.save_pretrained(tmp_path)
    assert np.array_equal(scores_of(SAFTScorer.from_pretrained(tmp_path, cache_dir=both.cache_dir), pool), expected)
    few = new_scorer(reference=others.select(range(30))).fit(pool, labelled)
    assert few.summary_.fit.probe.few
    assert any("few rows that ship with the package" in text for text in few.summary_.warnings)
