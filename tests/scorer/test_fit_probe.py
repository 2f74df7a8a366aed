"""A probe inside a scorer: every face gives the same, a saved one too, and what it may not decide it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset
from probe_kit import HARMFUL, SOURCES, write_probe_rows

from saft_hf import ReferenceSource, SAFTInputError, SAFTScorer, SAFTUndecidedError
from saft_hf.score.mixture import Densities, explain
from saft_hf.scorer.probing import apply_probe
from saft_hf.train.stream import StreamFilter


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_probe_rows(folder)
    return folder


@pytest.fixture(scope="module")
def pool(rows: Path) -> Dataset:
    return load_dataset("json", data_files=str(rows / "pool.jsonl"), split="train", cache_dir=str(rows / "cache"))


@pytest.fixture(scope="module")
def new(rows: Path, demo_model: str, store_dir: Path) -> Any:
    reference = [str(rows / source) for source in SOURCES]
    return lambda **options: SAFTScorer(demo_model, **{"reference": reference, "cache_dir": store_dir, **options})


@pytest.fixture(scope="module")
def fitted(new: Any, pool: Dataset) -> SAFTScorer:
    return new().fit(pool)


@pytest.fixture(scope="module")
def saved(new: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    new().fit_reference().save_pretrained(folder)
    return folder


def dialogue(request: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]}


def columns(scored: Any) -> list[np.ndarray]:
    return [np.asarray(scored[name], np.float32) for name in ("saft_score", "saft_probability")]


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(columns(one), columns(other), strict=True))


def test_harmful_rows_go_and_harmless_ones_stay(fitted: SAFTScorer, pool: Dataset) -> None:
    result = fitted.filter(pool, by="kind")
    bad = np.array(pool["kind"]) == "bad"
    assert bad[result.removed_indices].sum() > 0.8 * HARMFUL
    assert (~bad[result.removed_indices]).sum() < 0.05 * (~bad).sum()
    mixture = result.summary.fit and result.summary.fit.mixture
    assert mixture is not None
    assert mixture.low <= HARMFUL / len(pool) <= mixture.high


def test_faces_agree(fitted: SAFTScorer, pool: Dataset, tmp_path: Path) -> None:
    scored = fitted.score_dataset(pool)
    assert same(scored, pool.map(fitted, batched=True, batch_size=7))
    fitted.save_pretrained(tmp_path)
    again = SAFTScorer.from_pretrained(tmp_path, cache_dir=fitted.cache_dir)
    assert same(scored, again.score_dataset(pool))
    assert again.filter(pool).removed_indices.tolist() == fitted.filter(pool).removed_indices.tolist()


def test_a_saved_probe_is_as_good_as_its_rows(fitted: SAFTScorer, saved: Path, new: Any, pool: Dataset) -> None:
    again = new(reference=str(saved)).fit(pool)
    assert same(fitted.score_dataset(pool), again.score_dataset(pool))
    assert again.threshold_ == fitted.threshold_
    assert again.summary_.fit == fitted.summary_.fit


def test_the_summary_says_what_the_arrays_say(fitted: SAFTScorer, pool: Dataset) -> None:
    fit = fitted.fit_
    assert fit is not None
    assert fit.probe is not None
    scores, probabilities = columns(fitted.score_dataset(pool))
    found = explain(fit.probe.densities, scores[~np.isnan(probabilities)])
    assert fit.metrics.mixture is not None
    assert found.share == fit.metrics.mixture.share
    assert found.threshold == fitted.threshold_
    assert fit.metrics.mixture.outside == np.isnan(probabilities).sum()


def test_no_row_that_is_unlike_the_reference_is_removed(fitted: SAFTScorer, pool: Dataset) -> None:
    strange = Dataset.from_list([dialogue("0 " * 60, "x")])
    scored = fitted.score_dataset(strange)
    assert np.isnan(scored["saft_probability"][0])
    assert not np.isnan(scored["saft_score"][0])
    assert len(fitted.filter(strange).kept) == 1


def test_a_pool_unlike_the_reference_is_not_decided(new: Any) -> None:
    pool = Dataset.from_list([dialogue("0 " * (20 + at), "x " * (1 + at)) for at in range(60)])
    with pytest.raises(SAFTUndecidedError, match="unlike the reference"):
        new().fit(pool)


def test_an_aim_bounds_what_is_lost(new: Any, pool: Dataset) -> None:
    strict = new().fit(pool, aim="fpr=0.001")
    assert strict.summary_.fit is not None
    assert strict.summary_.fit.mixture is not None
    assert strict.summary_.fit.mixture.lost <= 0.001
    with pytest.raises(SAFTInputError, match="aim"):
        new().fit(pool, aim="recall=0.9")


def test_labels_and_probe_make_one_score(new: Any, saved: Path, pool: Dataset) -> None:
    labelled = pool.add_column("is_harmful", [kind == "bad" for kind in pool["kind"]]).shuffle(seed=0).select(range(80))
    scorer = new(reference=str(saved)).fit(pool, labelled)
    assert scorer.method_ == "auto"
    assert scorer.summary_.fit is not None
    assert scorer.summary_.fit.test is not None
    assert scorer.summary_.fit.test.weights["reference"] > 0
    assert scorer.summary_.fit.mixture is not None
    assert not any("the same harmful share" in text for text in scorer.summary_.warnings)
    off = replace(scorer.summary_.fit.mixture, share=0.9, low=0.85, high=0.95)
    told = replace(scorer.summary_, fit=replace(scorer.summary_.fit, mixture=off)).warnings
    assert any("the same harmful share" in text and "85.0% to 95.0% by the reference" in text for text in told)
    turned = labelled.map(lambda row: {"is_harmful": not row["is_harmful"]})
    with pytest.raises(SAFTUndecidedError, match="clearly disagree"):
        new(reference=str(saved)).fit(pool, turned)


def test_rows_of_the_pool_are_left_out_of_the_reference(new: Any, rows: Path, pool: Dataset) -> None:
    known = [str(rows / source) for source in SOURCES] + [
        pool.remove_columns("kind").add_column("is_harmful", [False] * len(pool))
    ]
    scorer = new(reference=known).fit(pool.select(range(100)), on_undecided="keep")
    assert scorer.summary_.fit is not None
    assert scorer.summary_.fit.probe is not None
    assert scorer.summary_.fit.probe.in_pool == 100


def test_a_probe_of_another_model_is_refused(saved: Path, lab_lm: str, store_dir: Path, pool: Dataset) -> None:
    with pytest.raises(Exception, match="fitted on another model"):
        SAFTScorer(lab_lm, reference=str(saved), cache_dir=store_dir).fit(pool)


def test_plain_text_is_read_where_there_is_no_boundary(new: Any, pool: Dataset) -> None:
    text = Dataset.from_dict({"text": ["\n".join(turn["content"] for turn in row) for row in pool["messages"]]})
    scorer = new().fit(text, on_undecided="keep")
    assert set(scorer.readouts_) <= {"response_mean", "response_end"}
    assert not np.isnan(scorer.score_dataset(text)["saft_score"]).any()


def test_a_stream_keeps_what_is_unlike_the_reference_as_filter_does(fitted: SAFTScorer, pool: Dataset) -> None:
    strange = concatenate_datasets([pool.remove_columns("kind"), Dataset.from_list([dialogue("0 " * 60, "x")] * 3)])
    assert fitted.threshold_ is not None
    low = fitted.filter(strange, threshold=-100.0)
    stream = StreamFilter(fitted, -100.0, "exclude")
    assert np.flatnonzero(stream(strange[:])).tolist() == low.kept_indices.tolist() != []


def test_a_reference_row_that_cannot_be_read_is_left_out(new: Any, rows: Path, pool: Dataset) -> None:
    broken = Dataset.from_list([{"messages": dialogue("a", "b")["messages"][:1]} | {"is_harmful": False}] * 3)
    references = [str(rows / source) for source in SOURCES]
    found = new(reference=[*references, broken]).fit(pool).summary_.fit
    assert found is not None
    assert found.probe is not None
    assert sum(part.rows for part in found.probe.components if part.source == "rows") == 0


def test_where_the_fitted_pool_holds_no_harm_no_row_of_another_goes(new: Any, saved: Path, pool: Dataset) -> None:
    clean = pool.filter(lambda row: row["kind"] == "good")
    scorer = new(reference=str(saved)).fit(clean)
    assert scorer.filter(clean).removed_indices.size == 0
    assert scorer.filter(pool).removed_indices.size == 0
    stream = StreamFilter(scorer, scorer.threshold_, "exclude", of_probe=True)
    assert all(stream(pool[:]))


def test_where_the_harmful_share_may_be_0_no_score_makes_a_row_likely_harmful() -> None:
    rng, own = np.random.default_rng(0), np.repeat([0, 1], 400)
    probe = SimpleNamespace(
        densities=Densities.of(*2 * [rng.normal(6.0 * own)], own, np.array([False, True])),
        auroc=0.99,
        unexplained=lambda scores, likely: likely <= 0,
    )
    scores = np.concatenate([rng.normal(0, 1, 1970), rng.normal(6, 1, 30)]).astype(np.float32)
    assert explain(probe.densities, scores).posterior.max() > 0.5
    found = apply_probe(probe, scores, np.zeros(2000, dtype=bool), 0.05)  # type: ignore[arg-type]
    assert found.undecided is None
    assert found.metrics is not None
    assert found.metrics.share > 0
    assert found.posterior.max() == 0.5
    assert found.threshold >= scores.max()


def test_too_few_rows_left_of_a_reference_are_undecided(new: Any, rows: Path) -> None:
    known = load_dataset("json", data_files=str(rows / "first.jsonl"), split="train", cache_dir=str(rows / "cache"))
    with pytest.raises(SAFTUndecidedError, match="stand in the pool"):
        new(reference=[str(rows / source) for source in SOURCES]).fit(known.remove_columns("is_safe"))


def test_a_reference_without_harmless_rows_of_its_own_is_warned_about(new: Any, rows: Path, pool: Dataset) -> None:
    scorer = new(reference=[str(rows / source) for source in SOURCES[:2]]).fit(pool, on_undecided="keep")
    assert any("no source of harmless rows alone" in text for text in scorer.summary_.warnings)


def test_a_fitted_reference_of_other_layers_says_so(new: Any, saved: Path, pool: Dataset) -> None:
    with pytest.raises(SAFTInputError, match="the fitted `reference` reads"):
        new(reference=str(saved), layer=1).fit(pool)


def test_a_licence_that_no_card_can_show_is_refused_at_once(new: Any, rows: Path, pool: Dataset) -> None:
    source = ReferenceSource(str(rows / "first.jsonl"), licence="https://example.org")
    with pytest.raises(SAFTInputError, match="`licence` is at most 80"):
        new(reference=[source]).fit(pool)


def test_a_threshold_given_to_a_probe_without_a_pool_removes_no_row_unlike_the_reference(
    new: Any, pool: Dataset, tmp_path: Path
) -> None:
    scorer = new(threshold=-100.0).fit_reference()
    assert scorer.threshold_ == -100.0
    strange = Dataset.from_list([dialogue("0 " * 60, "x")] * 3)
    mixed = concatenate_datasets([pool.remove_columns("kind"), strange])
    result = scorer.filter(mixed)
    unlike = np.isnan(columns(scorer.score_dataset(mixed))[1])
    assert unlike[len(pool) :].all()
    assert result.kept_indices.tolist() == np.flatnonzero(unlike).tolist()
    assert result.summary.reasons["kept"] == {"unlike": unlike.sum()}
    mapped = columns(mixed.map(scorer, batched=True, batch_size=7))  # without the store: to 1e-5
    for one, other in zip(mapped, columns(scorer.score_dataset(mixed)), strict=True):
        assert np.allclose(one, other, atol=1e-4, equal_nan=True)
    assert np.flatnonzero(StreamFilter(scorer, -100.0, "exclude")(mixed[:])).tolist() == result.kept_indices.tolist()
    scorer.save_pretrained(tmp_path)
    again = SAFTScorer.from_pretrained(tmp_path, cache_dir=scorer.cache_dir)
    assert again.filter(mixed).kept_indices.tolist() == result.kept_indices.tolist()


def test_a_share_of_a_pool_is_refused_where_there_is_no_pool(new: Any) -> None:
    with pytest.raises(SAFTInputError, match=r"`contamination`=0\.2 is a share of a pool"):
        new(contamination=0.2).fit_reference()
    with pytest.raises(SAFTInputError, match="`threshold` must be a finite number"):
        new(threshold=float("nan")).fit_reference()


def test_a_pool_that_is_all_unlike_the_reference_loses_no_row_to_a_given_threshold(new: Any, saved: Path) -> None:
    pool = Dataset.from_list([dialogue("0 " * (60 + at), "x") for at in range(30)])
    scorer = new(reference=str(saved), threshold=-100.0).fit(pool)
    unlike = np.isnan(columns(scorer.score_dataset(pool))[1])
    assert unlike.any()
    assert scorer.filter(pool, on_undecided="keep").kept_indices.tolist() == np.flatnonzero(unlike).tolist()


def test_what_is_certified_of_a_probe_is_what_filter_keeps(saved: Path, pool: Dataset, store_dir: Path) -> None:
    scorer = SAFTScorer.from_pretrained(saved, cache_dir=store_dir)
    strange = Dataset.from_list([dialogue("0 " * (60 + at), "x") for at in range(5)])
    rows = concatenate_datasets([pool, strange])
    scores, likely = columns(scorer.score_dataset(rows))
    unlike = np.isnan(likely)
    cut = float(np.median(scores[~unlike]))
    assert (scores[unlike] > cut).any()
    drawn = scorer.suggest_labels(rows, uniform=60, kept_only=True, threshold=cut)
    assert set(drawn["saft_row"]) <= set(np.flatnonzero((scores <= cut) | unlike).tolist())
    truth = [rows["kind"][row] == "bad" for row in drawn["saft_row"]]
    fresh = drawn.remove_columns("is_harmful").add_column("is_harmful", truth)
    certificate = scorer.certify(rows, fresh, alpha=0.2, threshold=cut)
    assert certificate.unlike == unlike.sum()
    result = scorer.filter(rows, certificate=certificate)
    assert len(result.kept) == certificate.kept == ((scores <= cut) | unlike).sum()
    assert scorer.certified(certificate).filter(rows).kept_indices.tolist() == result.kept_indices.tolist()


def test_rows_that_the_mixture_leaves_unexplained_are_laid_out_to_be_labelled(
    new: Any, saved: Path, pool: Dataset
) -> None:
    rows = pool.remove_columns("kind")
    scorer = new(reference=str(saved)).fit(pool.filter(lambda row: row["kind"] == "good"))  # nothing is likely harmful
    assert scorer.fit_ is not None
    assert scorer.fit_.probe is not None
    scores, likely = columns(scorer.score_dataset(rows))
    odd = np.flatnonzero((scores > scorer.fit_.probe.densities.above_benign) & (likely <= 0.5))
    assert len(odd) > 1
    found = scorer.suggest_labels(rows, uniform=20, informative=2 * len(odd))
    drawn = dict(zip(found["saft_row"], found["saft_purpose"], strict=True))
    assert sorted(row for row, word in drawn.items() if word == "unexplained") == odd.tolist()
    assert sorted(drawn.values()) == ["informative"] * len(odd) + ["unexplained"] * len(odd) + ["uniform"] * 20
    truth = found.remove_columns("is_harmful").add_column("is_harmful", [row in odd for row in found["saft_row"]])
    assert not new(method="auto").fit(rows, truth, on_undecided="keep").summary_.fit.labels.uniform
    assert scorer.certify(rows, truth, alpha=0.5, threshold=float(scores.max())).labels == 20


def test_a_figure_of_unseen_sources_needs_a_second_harmful_source(new: Any, rows: Path, fitted: SAFTScorer) -> None:
    several = fitted.summary_.fit and fitted.summary_.fit.probe
    assert several is not None
    assert several.held_out_auroc is not None
    assert all(part.left_out for part in several.components)
    files = [str(rows / name) for name in ("first.jsonl", "second.jsonl")]
    both = load_dataset("json", data_files=files, split="train", cache_dir=str(rows / "cache"))
    one = new(reference=[both, str(rows / "general.jsonl,harmful=false")]).fit_reference()
    single = one.summary_.fit and one.summary_.fit.probe
    assert single is not None
    assert single.held_out_auroc is None
    assert {part.source for part in single.components if not part.left_out} == {"rows"}
    assert any("one harmful source" in text for text in single.warnings)


def test_a_source_that_is_labelled_the_other_way_round_than_the_rest_is_told(
    new: Any, rows: Path, fitted: SAFTScorer
) -> None:
    read = load_dataset("json", data_files=str(rows / "first.jsonl"), split="train", cache_dir=str(rows / "cache"))
    flipped = read.map(lambda row: {"is_safe": not row["is_safe"]})
    given = [ReferenceSource(flipped, name="turned"), *(str(rows / source) for source in SOURCES[1:])]
    found = new(reference=given).fit_reference().summary_
    assert any("of turned, second.jsonl the other way round" in told for told in found.warnings)
    assert not any("the other way round" in told for told in fitted.summary_.warnings)


def test_rows_that_cannot_be_read_as_the_pool_is_are_told(new: Any, rows: Path, pool: Dataset) -> None:
    files = [str(rows / name) for name in ("first.jsonl", "second.jsonl")]
    labelled = load_dataset("json", data_files=files, split="train", cache_dir=str(rows / "cache"))
    text = labelled.map(lambda row: {"text": str(row["messages"])}, remove_columns="messages")
    given = [str(rows / source) for source in SOURCES]
    part = new(reference=[*given, text]).fit(pool, on_undecided="keep")
    assert any("No row of rows is fitted on: none can be read" in told for told in part.summary_.warnings)
    with pytest.raises(
        SAFTUndecidedError, match=r"Of rows 600 of 600 rows cannot be read\. Row 0 is no_response_start"
    ):
        new(reference=[text, given[2]]).fit(pool)
