"""Models as objects, models that are broken, and rows that stick out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scorer_kit import Forwards, changed_demo, demo_causal_lm, demo_tokenizer, tokens_and_spans

from saft_hf import SAFTScorer
from saft_hf.errors import SAFTInputError, SAFTUndecidedError


@pytest.fixture(scope="module")
def pool(demo_pool: Dataset) -> Dataset:
    return demo_pool.select(range(80))


@pytest.fixture(scope="module")
def by_name(demo_model: str, pool: Dataset, store_dir: Path) -> list[float]:
    return (
        SAFTScorer(demo_model, method="saft", layer=2, k=2, cache_dir=store_dir)
        .fit(pool)
        .score_dataset(pool)["saft_score"][:]
    )


def generators() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.smoke
def test_an_object_is_read_in_place_and_left_as_it_was(
    pool: Dataset, by_name: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_causal_lm().train()
    model.model.layers[1].eval()
    model.lm_head.requires_grad_(False)
    flags = {name: module.training for name, module in model.named_modules()}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before, forwards = generators(), Forwards(monkeypatch)

    scorer = SAFTScorer(model, method="saft", layer=2, k=2, cache_dir=tmp_path).fit(pool)
    assert forwards.count > 0
    assert scorer.score_dataset(pool)["saft_score"][:] == by_name
    scorer(pool[:5])

    assert generators() == before
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == grads
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not list(tmp_path.rglob("*.tmp"))


def test_reading_by_name_leaves_the_generators_alone(demo_model: str, pool: Dataset, tmp_path: Path) -> None:
    before = generators()
    SAFTScorer(demo_model, method="saft", layer=2, k=1, cache_dir=tmp_path).fit(pool).score_dataset(pool)
    assert generators() == before


def test_an_object_in_another_dtype_does_not_take_vectors_of_the_first(pool: Dataset, tmp_path: Path) -> None:
    def scores(store: Path, dtype: torch.dtype) -> list[float]:
        scorer = SAFTScorer(demo_causal_lm(dtype=dtype), method="saft", layer=2, k=2, cache_dir=store).fit(pool)
        return scorer.score_dataset(pool)["saft_score"][:]

    full, half = scores(tmp_path / "full", torch.float32), scores(tmp_path / "half", torch.bfloat16)
    assert full != half
    assert scores(tmp_path / "full", torch.bfloat16) == half
    assert scores(tmp_path / "half", torch.float32) == full


def test_an_object_without_a_name_is_scored_here_and_says_so_elsewhere(
    pool: Dataset, by_name: list[float], tmp_path: Path
) -> None:
    model = demo_causal_lm()
    model.config._name_or_path = ""
    with pytest.raises(SAFTInputError, match="processing_class"):
        SAFTScorer(model, method="saft", layer=2, cache_dir=tmp_path).fit(pool)
    scorer = SAFTScorer(model, method="saft", layer=2, k=2, cache_dir=tmp_path, processing_class=demo_tokenizer()).fit(
        pool
    )
    assert scorer.score_dataset(pool)["saft_score"][:] == by_name
    assert pool.map(scorer, batched=True, load_from_cache_file=False)["saft_score"][:] == by_name


def fed_tokens(pool: Dataset) -> list[set[int]]:
    """The tokens that `response_start` is fed, row by row."""
    tokenizer = demo_tokenizer()
    rows = [tokens_and_spans(tokenizer, row["messages"]) for row in pool]
    return [set(ids[: spans[-1][0]]) for ids, spans in rows]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_with_a_non_finite_state_have_a_status_and_the_others_a_score(
    pool: Dataset, tmp_path: Path, value: float
) -> None:
    fed = fed_tokens(pool)
    counts = {token: sum(token in row for row in fed) for token in set().union(*fed)}
    token = min(token for token, count in counts.items() if count == 7)

    def spoil(model: Any) -> None:
        model.get_input_embeddings().weight[token] = value

    scorer = SAFTScorer(
        changed_demo(tmp_path / "model", spoil), method="saft", layer=2, contamination=0.1, cache_dir=tmp_path / "s"
    )
    scored = scorer.fit(pool).score_dataset(pool)
    hit = [token in row for row in fed]
    assert [status == "non_finite" for status in scored["saft_status"]] == hit
    assert np.isnan(np.asarray(scored["saft_score"])).tolist() == hit
    assert scorer.summary_.fit.pool.unscored == {"non_finite": 7}
    assert scorer(pool[:])["saft_status"] == scored["saft_status"][:]
    result = scorer.filter(pool)
    assert result.errored_indices.tolist() == np.flatnonzero(hit).tolist()


def test_a_model_that_gives_only_nan_is_refused(pool: Dataset, tmp_path: Path) -> None:
    broken = changed_demo(tmp_path / "model", lambda model: model.model.layers[0].mlp.down_proj.weight.fill_(np.nan))
    with pytest.raises(SAFTInputError, match=r"NaN or infinity: the model is broken"):
        SAFTScorer(broken, method="saft", layer=2, cache_dir=tmp_path / "s").fit(pool)


def test_one_row_of_giant_norm_is_scored_and_reported(demo_pool: Dataset, tmp_path: Path) -> None:
    tokenizer = demo_tokenizer()
    rows = [set(tokens_and_spans(tokenizer, row["messages"])[0]) for row in demo_pool]
    counts = {token: sum(token in row for row in rows) for token in set().union(*rows)}
    token = min(token for token, count in counts.items() if count == 1)
    giant = next(i for i, row in enumerate(rows) if token in row)

    def blow_up(model: Any) -> None:
        model.get_input_embeddings().weight[token] *= 1e6

    name = changed_demo(tmp_path / "model", blow_up)
    labelled = demo_pool.select([i for i in range(100) if i != giant])
    scorer = SAFTScorer(name, method="saft", layer=2, readout="response_mean", cache_dir=tmp_path / "s")
    with pytest.raises(SAFTUndecidedError, match="removes 599 of the pool's 600 scored rows"):
        scorer.fit(demo_pool, labelled)
    scores = np.asarray(scorer.score_dataset(demo_pool)["saft_score"])
    assert np.isfinite(scores).all()
    assert scores.argmax() == giant
    assert scores[giant] > 1e5 * np.delete(scores, giant).max()
    # The grid spans the pool's scores: beside one giant, its 100 points part the rows in hardly any way.
    assert scorer.summary_.fit.published.separating_points <= 2
    assert scorer.summary_.fit.published.variance_share > 0.999


def test_weights_that_changed_since_the_fit_are_refused(
    demo_model: str, pool: Dataset, demo_pool: Dataset, tmp_path: Path
) -> None:
    SAFTScorer(demo_model, method="saft", layer=2, k=1, threshold=0.3, cache_dir=tmp_path).fit(pool).save_pretrained(
        tmp_path / "f"
    )
    other = changed_demo(tmp_path / "model", lambda model: model.model.layers[0].mlp.up_proj.weight.mul_(1.01))
    deeper = changed_demo(tmp_path / "deep", lambda model: model.model.layers[3].mlp.up_proj.weight.mul_(1.01))
    new = demo_pool.select(range(100, 130))
    moved = SAFTScorer.from_pretrained(tmp_path / "f", model=other, cache_dir=tmp_path)
    for call in (moved.score_dataset, moved.filter, lambda rows: moved(rows[:])):
        with pytest.raises(Exception, match="not those that this scorer was fitted on"):
            call(new)
    # Block 3 lies above the layer that is read, so the vectors are the same.
    assert len(SAFTScorer.from_pretrained(tmp_path / "f", model=deeper, cache_dir=tmp_path).score_dataset(new)) == 30


def test_a_filter_that_keeps_nothing_is_refused(demo_model: str, pool: Dataset, store_dir: Path) -> None:
    options = {"layer": 2, "k": 1, "threshold": -1.0, "cache_dir": store_dir}
    with pytest.raises(SAFTUndecidedError, match=r"removes 80 of the pool's 80 scored rows.*on_undecided='keep'"):
        SAFTScorer(demo_model, method="saft", **options).fit(pool)
    forced = SAFTScorer(demo_model, method="saft", **options).fit(pool, on_undecided="keep").filter(pool)
    assert len(forced.kept_indices) == 80
    assert forced.summary.filtered is False
