"""Every public face gives the same scores and decisions for rows in any format of `datasets`, and reads no more of them
than it needs."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Audio, Dataset, Features, Image, Json, Value, load_from_disk
from datasets.formatting.formatting import PythonArrowExtractor
from scorer_kit import demo_tokenizer

from saft_hf import SAFTScorer, SAFTSFTConfig
from saft_hf.assets import reference_path
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.render.batches import plain
from saft_hf.scorer import SCORE, STATUS
from saft_hf.train.filtering import filter_rows
from saft_hf.train.inputs import FilterArgs

POLARS = pytest.param("polars", marks=pytest.mark.skipif(not importlib.util.find_spec("polars"), reason="no polars"))
FORMATS = ["numpy", "pandas", "arrow", "torch", POLARS]
ROWS = 12
Found = tuple[list[Any], ...]


@pytest.fixture(scope="module")
def shapes(demo_pool: Dataset) -> dict[str, Dataset]:
    """The same rows in several shapes; one of each cannot be scored."""
    rows = demo_pool.select(range(ROWS)).to_list()
    ids = demo_tokenizer().apply_chat_template([row["messages"] for row in rows], return_dict=True)["input_ids"]
    call = {"name": "tide", "arguments": {"height": 0.1, "ports": ["a", 1]}}
    shapes: dict[str, list[dict[str, Any]]] = {
        "messages": [{"messages": r["messages"], "tools": None, "chat_template_kwargs": {"n": 0.1}} for r in rows],
        "calls": [{"messages": [{**message, "tool_calls": [call]} for message in r["messages"]]} for r in rows],
        "conversations": [
            {"conversations": [{"from": m["role"], "value": m["content"]} for m in r["messages"]]} for r in rows
        ],
        "parts": [{"prompt": r["messages"][:-1], "completion": r["messages"][-1:]} for r in rows],
        "strings": [{"prompt": r["messages"][0]["content"], "completion": r["messages"][-1]["content"]} for r in rows],
        "tokens": [{"input_ids": row, "labels": [-100] * 9 + row[9:]} for row in ids],
        "equal tokens": [{"input_ids": row[:16], "completion_mask": [0] * 9 + [1] * 7} for row in ids],
    }
    for name, made in shapes.items():
        made[3]["completion_mask" if name == "equal tokens" else list(made[3])[-1]] = None
        made[5][next(iter(made[5]))] = [] if "tokens" not in name else made[5]["input_ids"]
    shapes["messages"][4]["messages"] = None
    shapes["strings"][5]["prompt"] = None
    text = Value("string")  # tools take arguments of any kind, which are kept as JSON
    features = {"calls": Features({"messages": [{"role": text, "content": text, "tool_calls": Json()}]})}
    return {
        name: Dataset.from_list(made, features=features.get(name)).add_column("number", range(ROWS))
        for name, made in shapes.items()
    }


def found(scored: Dataset | list[dict[str, Any]]) -> Found:
    rows = scored.with_format(None).to_list() if isinstance(scored, Dataset) else scored
    assert [row["number"] for row in rows] == list(range(ROWS))  # what came in is still there
    return ([str(np.float32(row[SCORE])) for row in rows], [row[STATUS] for row in rows])


def by_map(scorer: SAFTScorer, rows: Dataset) -> Found:
    return found(rows.map(scorer, batched=True, batch_size=7, load_from_cache_file=False))


def by_call(scorer: SAFTScorer, rows: Dataset) -> Found:
    scored = scorer(rows[:])
    return ([str(np.float32(score)) for score in np.asarray(scored[SCORE])], np.asarray(scored[STATUS]).tolist())


def by_score_dataset(scorer: SAFTScorer, rows: Dataset) -> Found:
    return found(scorer.score_dataset(rows))


def by_filter(scorer: SAFTScorer, rows: Dataset) -> Found:
    result = scorer.filter(rows, threshold=0.5, on_undecided="keep")
    counts = [len(result.kept), len(result.removed), len(result.errored)]
    return (result.scores.astype(str).tolist(), result.statuses, result.decisions.words(), counts)


def by_stream(scorer: SAFTScorer, rows: Dataset) -> Found:
    stream = rows.to_iterable_dataset().with_format(rows.format["type"])
    return found(list(stream.map(scorer, batched=True, batch_size=7).with_format(None)))


FACES: list[Callable[[SAFTScorer, Dataset], Found]] = [by_map, by_call, by_score_dataset, by_filter, by_stream]


@pytest.fixture(scope="module", params=FACES)
def face(request: pytest.FixtureRequest, scorer: SAFTScorer, shapes: dict[str, Dataset]) -> Any:
    """A face, and what it says of each shape in Python's own values."""
    return request.param, {name: request.param(scorer, rows) for name, rows in shapes.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_scoring(face: Any, form: str, scorer: SAFTScorer, shapes: dict[str, Dataset]) -> None:
    for name, rows in shapes.items():
        score, expected = face[0], face[1][name]
        if name == "calls" and score in (by_map, by_call) and form in ("pandas", "polars"):
            continue  # `datasets` cannot read what JSON holds as polars, nor write it back from pandas
        assert len({*expected[1]} - {"ok"}) == 1 or name == "equal tokens", name
        assert "ok" in expected[1], name
        try:
            rows.with_format(form)[:]
        except ValueError:  # `datasets` 4.7 cannot give lists of many lengths with a null among them as arrays
            assert "tokens" in name, name
            continue
        assert score(scorer, rows.with_format(form)) == expected, name


def fit_and_certify(model: str, pool: Dataset, form: str | None, store: Path, *, stream: bool = False) -> list[Any]:
    """All that is said of a pool in a format, labels too."""
    labelled, given = pool.shuffle(seed=0).select(range(80)).with_format(form), pool.with_format(form)
    scorer = SAFTScorer(model, method="saft", layer=2, cache_dir=store)
    rows = pool.to_iterable_dataset().with_format(form) if stream else given
    scorer.fit(rows, labelled, fit_rows=len(pool), on_undecided="keep")
    if stream:
        return [scorer.threshold_, scorer.summary_]
    drawn = scorer.suggest_labels(given, uniform=40, informative=5).with_format(None)
    fresh = drawn.remove_columns("is_harmful").add_column("is_harmful", [n % 7 == 0 for n in drawn["saft_row"]])
    certificate = scorer.certify(given, fresh.with_format(form), alpha=0.3, stratify_by="category")
    result = scorer.filter(given, label_column="is_safe", refusal_column="is_safe", on_undecided="keep")
    return [scorer.threshold_, scorer.summary_, drawn[:], certificate, result.decisions.words()]


@pytest.fixture(scope="module")
def certified(demo_model: str, demo_pool: Dataset, store_dir: Path) -> list[Any]:
    return fit_and_certify(demo_model, demo_pool.select(range(150)), None, store_dir)


@pytest.mark.parametrize("form", FORMATS)
def test_fit_labels_suggestions_and_certificates(
    form: str, certified: list[Any], demo_model: str, demo_pool: Dataset, store_dir: Path
) -> None:
    pool = demo_pool.select(range(150))
    assert fit_and_certify(demo_model, pool, form, store_dir) == certified
    assert fit_and_certify(demo_model, pool, form, store_dir, stream=True) == certified[:2]


@pytest.mark.parametrize("form", FORMATS)
def test_the_trainers_filter(
    form: str, demo_model: str, scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path
) -> None:
    args = SAFTSFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", saft_fit_rows=None)
    rows = demo_pool.select(range(60))
    trusted = scorer.score_dataset(rows).with_format(form)

    def kept(given: Any, **options: Any) -> list[Any]:
        own = copy.copy(args)
        for name, value in options.items():
            setattr(own, name, value)
        scores = None if "saft_trust_scores" in options else scorer
        filtered = filter_rows(FilterArgs(model=demo_model, args=own, train_dataset=given, scorer=scores), World())
        left = filtered.dataset.with_format(None)
        # A format has turned a stream's values into arrays by then.
        return [plain(row)["messages"] for row in left]

    expected = kept(rows)
    assert 0 < len(expected) < 60
    trust = {"saft_trust_scores": True, "saft_threshold": scorer.threshold_}
    for given, options in ((rows.with_format(form), {}), (trusted, trust)):
        assert kept(given, **options) == expected
        if form in ("pandas", "arrow") and datasets.__version__ < "5":
            continue  # `datasets` could not filter such streams
        assert kept(given.with_format(None).to_iterable_dataset().with_format(form), **options) == expected


@pytest.mark.parametrize("form", FORMATS)
def test_a_reference_set_and_its_pool(form: str, demo_model: str, demo_pool: Dataset, store_dir: Path) -> None:
    reference = Dataset.from_list([json.loads(line) for line in reference_path().open(encoding="utf-8")])
    reference = reference.add_column("clip", [{"bytes": b"RIFF", "path": None}] * len(reference))
    pool = demo_pool.select(range(40)).add_column("clip", [{"bytes": b"RIFF", "path": None}] * 40)

    def scores(form: str | None) -> list[float]:
        own, rows = (each.cast_column("clip", Image()).with_format(form) for each in (reference, pool))
        scorer = SAFTScorer(demo_model, method="reference", reference=own, cache_dir=store_dir)
        return scorer.fit(rows, on_undecided="keep").filter(rows).scores.tolist()

    assert scores(form) == scores(None)


# -- columns that nobody reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [None, "numpy", "pandas"])
@pytest.mark.parametrize("kind", [Audio, Image])
def test_damaged_media_beside_the_text_are_not_decoded(
    kind: Any, form: str | None, demo_model: str, demo_pool: Dataset, scorer: SAFTScorer, tmp_path: Path
) -> None:
    text = demo_pool.select(range(30))
    rows = text.add_column("clip", [{"bytes": b"RIFF", "path": None}] * 30).cast_column("clip", kind())
    given, clean = rows.with_format(form), text.with_format(form)
    options: dict[str, Any] = {"method": "saft", "layer": 2, "contamination": 0.2, "cache_dir": tmp_path / "store"}
    own = SAFTScorer(demo_model, **options).fit(given)
    assert SAFTScorer(demo_model, **options).fit(rows.to_iterable_dataset(), fit_rows=30).threshold_ == own.threshold_
    result = own.filter(given)
    assert result.scores.tolist() == own.filter(clean).scores.tolist()
    if form is None:  # for others `map` itself decodes every column
        mapped = given.map(own, batched=True, load_from_cache_file=False).with_format(None)
        assert np.array_equal(np.float32(mapped[SCORE][:]), result.scores)
    result.save(tmp_path / "saved", file_format="arrow")
    result.save(tmp_path / "as-parquet")
    kept = load_from_disk(str(tmp_path / "saved" / "kept")).with_format(None).cast_column("clip", kind(decode=False))
    assert kept["clip"][:] == [{"bytes": b"RIFF", "path": None}] * len(result.kept)
    drawn = own.suggest_labels(given, uniform=5)
    assert drawn.column_names[-3:] == ["saft_row", "saft_purpose", "is_harmful"]
    fitted = SAFTScorer(demo_model, formatting_func=lambda row: row["messages"][-1]["content"], **options)
    assert np.isfinite(fitted.fit(given.remove_columns("is_safe")).filter(given.remove_columns("is_safe")).scores).all()


def test_of_many_columns_those_that_are_read_are_loaded(
    scorer: SAFTScorer, demo_pool: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = demo_pool.select(range(30))
    for number in range(20):
        rows = rows.add_column(f"column {number}", [0.5] * 30)
    loaded: set[str] = set()
    for name in ("extract_row", "extract_column", "extract_batch"):
        extract = getattr(PythonArrowExtractor, name)

        def recorded(self: Any, table: Any, extract: Any = extract) -> Any:
            loaded.update(table.column_names)
            return extract(self, table)

        monkeypatch.setattr(PythonArrowExtractor, name, recorded)
    own = copy.copy(scorer)
    scores = own.score_dataset(rows)
    own.fit(rows, rows.select(range(20)), on_undecided="keep").filter(rows, threshold=1.0, on_undecided="keep")
    rows.map(scorer, batched=True, load_from_cache_file=False)
    assert "messages" in loaded
    assert not [name for name in loaded if name.startswith("column")]
    assert scores.column_names == [*rows.column_names, SCORE, STATUS]


# -- calls that `datasets` allows -------------------------------------------------------------------------------------


def test_a_map_of_single_rows_is_told_from_one_of_batches(scorer: SAFTScorer, shapes: dict[str, Dataset]) -> None:
    text = shapes["strings"].select_columns(["prompt"]).rename_column("prompt", "text")
    own = shapes["strings"].rename_columns({"prompt": "instruction", "completion": "output"})
    for rows in (*shapes.values(), text, own):
        good = rows.select([0, 1, 2])
        for misuse in (
            lambda rows: rows.map(scorer, load_from_cache_file=False),
            lambda rows: rows.with_format("numpy").map(scorer, load_from_cache_file=False),
            lambda rows: list(rows.to_iterable_dataset().map(scorer)),
            lambda rows: scorer(rows[0]),
        ):
            with pytest.raises(SAFTInputError, match=r"holds one row.*map\(scorer, batched=True\)"):
                misuse(good)


@pytest.mark.parametrize("batched", [True, False])
def test_a_filter_of_datasets_is_no_filter_of_ours(
    batched: bool, scorer: SAFTScorer, shapes: dict[str, Dataset]
) -> None:
    for rows in shapes.values():
        good = rows.select([0, 1, 2])
        with pytest.raises(SAFTInputError, match=r"`scorer\.filter\(dataset\)`"):
            good.filter(scorer, batched=batched, load_from_cache_file=False)
        with pytest.raises(SAFTInputError, match=r"`scorer\.filter\(dataset\)`"):
            list(good.to_iterable_dataset().filter(scorer, batched=batched))


def test_what_is_no_batch_at_all(scorer: SAFTScorer, demo_pool: Dataset) -> None:
    messages = demo_pool[0]["messages"]
    for given in (messages, demo_pool, "Why?", None, [demo_pool[0]]):
        with pytest.raises(SAFTInputError, match=r"a batch is needed.*score_dataset"):
            scorer(given)
    with pytest.raises(SAFTInputError, match="input_columns"):
        demo_pool.select([0]).map(scorer, batched=True, input_columns=["messages"])
    assert json.loads(json.dumps(scorer({"messages": [messages]})[STATUS])) == ["ok"]
