"""`reference`: what a fit without labels learns, and when it decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scorer_kit import plain_vectors
from transformers import AutoTokenizer

from saft_hf import SAFTScorer
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.render import Renderer
from saft_hf.score.probe import Whitening, fit_probe
from saft_hf.scorer.methods.reference import laid_out_like, with_built_in
from saft_hf.scorer.reference_rows import ReferenceRows, ReferenceSource
from saft_hf.summary import SourceInfo

BUILT_IN = "built-in requests", "built-in answers", "built-in twins"
INFO = SourceInfo(name="mine", digest="0" * 64, rows=150, harmful=50, benign=100)


def as_messages(part: Dataset) -> list[dict[str, Any]]:
    if "messages" in part.column_names:
        return part.to_list()
    asked, said = (
        (lambda text: {"role": "user", "content": text}),
        (lambda text: {"role": "assistant", "content": text}),
    )
    return [{"messages": [asked(row["prompt"]), said(row["completion"])]} for row in part]


@pytest.fixture(scope="module")
def parts(demo_pool: Dataset) -> tuple[Dataset, Dataset]:
    """A pool, and a reference set of the same kind, a third of it harmful."""
    order = np.random.default_rng(0).permutation(len(demo_pool))
    harmful = ~np.asarray(demo_pool["is_safe"])[order]
    bad, good = order[harmful], order[~harmful]
    reference = demo_pool.select([*bad[:50], *good[:100]])
    return demo_pool.select([*bad[50:], *good[100:300]]), reference


@pytest.fixture
def new_scorer(demo_model: str, store_dir: Path) -> Any:
    return lambda **options: SAFTScorer(demo_model, **{"cache_dir": store_dir, **options})


def test_few_rows_and_the_built_in_ones_give_the_score_that_plain_arrays_give(
    new_scorer: Any, parts: tuple[Dataset, Dataset]
) -> None:
    pool, reference = parts
    features = ("3.response_start", "3.response_mean")
    scorer = new_scorer(reference=reference, layer=3).fit(pool, on_undecided="keep")
    rows = with_built_in(
        ReferenceRows((INFO,), (reference.remove_columns("is_safe"),), (~np.array(reference["is_safe"]),))
    )
    assert rows.few
    dialogues = [as_messages(part) for part in rows.parts]
    vectors = {
        name: np.concatenate([plain_vectors(part, 3, name.split(".")[1]) for part in dialogues]) for name in features
    }
    prompts = [str(row["messages"][:-1]) for part in dialogues for row in part]
    whitening = Whitening.of(vectors)
    probe = fit_probe(
        whitening,
        whitening(vectors),
        np.concatenate(rows.harmful),
        [info.name for info in rows.sources],
        np.repeat(np.arange(len(rows.parts)), [len(part) for part in rows.parts]),
        np.unique(prompts, return_inverse=True)[1],
        few=True,
    )
    expected = probe.score({name: plain_vectors(pool, 3, name.split(".")[1]) for name in features})
    scores = np.asarray(scorer.score_dataset(pool)["saft_score"])
    assert scorer.method_ == "reference"
    # Whitened on a sample of all rows here and there, in another order: the same subspace to rounding.
    assert np.abs(scores - expected).max() <= 1e-3 * np.abs(expected).max()
    assert [info.name for info in scorer.summary_.fit.probe.sources[1:]] == list(BUILT_IN)


def test_labels_of_the_pool_are_not_looked_at(new_scorer: Any, parts: tuple[Dataset, Dataset]) -> None:
    pool, reference = parts
    blind = pool.remove_columns("is_safe")
    one, two = (new_scorer(reference=reference).fit(rows, on_undecided="keep") for rows in (pool, blind))
    assert np.array_equal(one.score_dataset(pool)["saft_score"], two.score_dataset(blind)["saft_score"])
    assert one.threshold_ == two.threshold_


def test_a_share_or_a_threshold_decides_in_place_of_the_reference_set(
    new_scorer: Any, parts: tuple[Dataset, Dataset]
) -> None:
    pool, reference = parts
    shared = new_scorer(reference=reference, contamination=0.25).fit(pool)
    assert 0.2 * len(pool) < len(shared.filter(pool).removed_indices) <= 0.25 * len(pool)
    given = new_scorer(reference=reference, threshold=1.5).fit(pool)
    assert (given.threshold_, given.summary_.threshold_from) == (1.5, "given")


def test_a_reference_set_that_the_states_do_not_tell_apart_decides_nothing(
    new_scorer: Any, parts: tuple[Dataset, Dataset]
) -> None:
    pool, reference = parts
    rng = np.random.default_rng(1)
    noise = reference.remove_columns("is_safe").add_column("is_safe", rng.permutation(reference["is_safe"]).tolist())
    scorer = new_scorer(reference=noise)
    with pytest.raises(SAFTUndecidedError, match=r"do not tell the reference rows themselves apart"):
        scorer.fit(pool)
    assert np.isfinite(scorer.score_dataset(pool)["saft_score"]).all()
    kept = new_scorer(reference=noise).fit(pool, on_undecided="keep").filter(pool)
    assert kept.train_rows() is pool


def test_labels_of_one_class_are_refused_and_harmless_rows_alone_join_the_built_in_ones(
    new_scorer: Any, parts: tuple[Dataset, Dataset]
) -> None:
    pool, reference = parts
    with pytest.raises(SAFTInputError, match=r"needs harmful rows and benign ones \(rows: 50 harmful, 0 benign\)"):
        new_scorer(reference=reference.select(range(50))).fit(pool)
    benign = reference.filter(lambda row: row["is_safe"]).remove_columns("is_safe")
    scorer = new_scorer(reference=ReferenceSource(benign, name="mine", harmful=False)).fit(pool, on_undecided="keep")
    sources = scorer.summary_.fit.probe.sources
    assert [(info.name, info.harmful, info.benign) for info in sources[:2]] == [
        ("mine", 0, 100),
        ("built-in requests", 100, 100),
    ]


def test_the_built_in_rows_are_the_default_without_labels(new_scorer: Any, demo_pool: Dataset) -> None:
    scorer = new_scorer().fit(demo_pool, on_undecided="keep")
    assert scorer.method_ == "reference"
    assert [info.name for info in scorer.summary_.fit.probe.sources] == list(BUILT_IN)
    assert not any("no source of harmless rows" in text for text in scorer.summary_.warnings)


def test_a_probe_of_the_built_in_rows_is_fitted_once_for_every_pool(
    new_scorer: Any, demo_pool: Dataset, tmp_path: Path
) -> None:
    new_scorer().fit_reference().save_pretrained(tmp_path)
    one, two = (new_scorer(reference=each).fit(demo_pool, on_undecided="keep") for each in (None, str(tmp_path)))
    assert np.array_equal(one.score_dataset(demo_pool)["saft_score"], two.score_dataset(demo_pool)["saft_score"])


def test_a_reference_set_is_the_same_by_name_and_as_datasets(
    new_scorer: Any, parts: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    pool, reference = parts
    reference.select(range(40)).to_parquet(tmp_path / "a.parquet")
    theirs = reference.select(range(40, 150)).map(lambda row: {"verdict": "good" if row["is_safe"] else "bad"})
    theirs.remove_columns("is_safe").rename_column("messages", "turns").to_json(
        tmp_path / "b.jsonl.gz", compression="gzip"
    )
    forms = {
        "datasets": [reference.select(range(40)), reference.select(range(40, 150))],
        "names": [
            str(tmp_path / "a.parquet"),
            f"{tmp_path}/b.jsonl.gz,messages=turns,label_column=verdict,harmful_value=bad",
        ],
    }
    fits = [new_scorer(reference=each).fit(pool, on_undecided="keep") for each in forms.values()]
    scores = [np.asarray(each.score_dataset(pool)["saft_score"]) for each in fits]
    # Other batches: the last bits of a vector differ.
    assert np.abs(scores[0] - scores[1]).max() <= 1e-4 * np.abs(scores[0]).max()
    told = [each.summary_.fit.probe.sources for each in fits]
    assert all(sum(info.rows for info in each[:2]) == 150 for each in told)


def test_what_is_wrong_with_a_reference_is_said_before_a_model_is_loaded(demo_pool: Dataset) -> None:
    with pytest.raises(SAFTInputError, match=r"there is no file nothing\.csv"):
        SAFTScorer("no/model", reference="nothing.csv").fit(demo_pool)


def test_a_reference_set_without_labels_is_refused(new_scorer: Any, parts: tuple[Dataset, Dataset]) -> None:
    pool, reference = parts
    with pytest.raises(SAFTInputError, match="one label column was expected"):
        new_scorer(reference=reference.remove_columns("is_safe")).fit(pool)


@pytest.mark.parametrize("form", ["messages", "chat pairs", "pairs", "text", "tokens"])
def test_the_reference_set_is_laid_out_as_the_pool_is(form: str, demo_pool: Dataset, demo_model: str) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(demo_model))
    question, answer = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
    pools = {
        "messages": {"messages": [question + answer]},
        "chat pairs": {"prompt": [question], "completion": [answer]},
        "pairs": {"prompt": ["q"], "completion": ["a"]},
        "text": {"text": ["q a"]},
        "tokens": {"input_ids": [[1, 2, 3]]},
    }
    rows = Dataset.from_dict({"prompt": ["Why?"], "completion": ["So."], "is_harmful": [False]})
    found = laid_out_like(Dataset.from_dict(pools[form]), rows, renderer)
    dialogue = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    expected = {"pairs": {"prompt": "Why?", "completion": "So."}, "text": {"text": "Why?\nSo."}}
    for name, value in expected.get(form, {"messages": dialogue}).items():
        assert found[0][name] == value


def test_a_reference_set_of_pairs_serves_a_pool_of_dialogues(new_scorer: Any, parts: tuple[Dataset, Dataset]) -> None:
    pool, reference = parts
    reference = reference.filter(lambda row: [turn["role"] for turn in row["messages"]] == ["user", "assistant"])
    pairs = reference.map(
        lambda row: {"prompt": row["messages"][0]["content"], "completion": row["messages"][1]["content"]},
        remove_columns=["messages"],
    )
    one, two = (new_scorer(reference=rows).fit(pool, on_undecided="keep") for rows in (reference, pairs))
    assert np.array_equal(one.score_dataset(pool)["saft_score"], two.score_dataset(pool)["saft_score"])
