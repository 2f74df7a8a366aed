"""One table of options: signatures, copies, pickles and saved scorers follow it."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from saft_hf import ReferenceSource, SAFTScorer
from saft_hf.assets import reference_columns
from saft_hf.embed import content_of
from saft_hf.render import RenderConfig
from saft_hf.scorer.options import LOCAL, OPTIONS, TRAVELLING
from saft_hf.scorer.saving import SavedOptions

# Another value than the default for each argument of the constructor.
OTHER: dict[str, Any] = {
    "revision": "main",
    "layer": 2,
    "readout": "response_mean",
    "method": "reference",
    "k": 3,
    "threshold": 1.5,
    "contamination": 0.25,
    "reference": Dataset.from_dict(reference_columns()),
    "dtype": "float32",
    "attn_implementation": "eager",
    "quantization_config": {"load_in_4bit": True},
    "device_map": "cpu",
    "vector_dtype": "float16",
    "max_length": 77,
    "cache_dir": "elsewhere",
    "trust_remote_code": True,
    "token": "hf_secret",
    "processing_class": None,
    "render": RenderConfig(max_length=55),
    "formatting_func": len,
}


def parameters(function: Any, skip: int) -> dict[str, Any]:
    found = list(inspect.signature(function).parameters.values())[skip:]
    return {parameter.name: parameter.default for parameter in found}


def test_the_signatures_are_the_table() -> None:
    by_use = {
        use: {option.name: option.default for option in OPTIONS if option.use == use}
        for use in ("scorer", "fit", "filter")
    }
    assert parameters(SAFTScorer.__init__, 2) == by_use["scorer"]
    assert list(parameters(SAFTScorer.__init__, 2)) == list(by_use["scorer"])  # in the same order
    fit = parameters(SAFTScorer.fit, 3)
    assert fit == {**by_use["fit"], "on_undecided": "raise"}
    own = parameters(SAFTScorer.filter, 2)
    assert {name: own[name] for name in by_use["filter"]} == by_use["filter"]
    assert set(own) - {"certificate"} <= {option.name for option in OPTIONS}
    assert tuple(field.name for field in fields(SavedOptions)) == TRAVELLING
    assert set(OTHER) == {*TRAVELLING, *LOCAL}


@pytest.mark.parametrize("name", [name for name in OTHER if OTHER[name] is not None])
def test_a_copy_keeps_every_option(demo_model: str, name: str) -> None:
    scorer = SAFTScorer(demo_model, **{name: OTHER[name]})
    assert getattr(copy.copy(scorer), name) is OTHER[name]


@pytest.mark.parametrize(
    "reference",
    [
        ["rows.csv", "me/rows,split=dev"],
        ReferenceSource("rows.csv", columns={"ask": "prompt"}, harmful=False),
        [ReferenceSource(OTHER["reference"], name="mine"), "rows.csv"],
        [{"path": "rows.csv", "prompt": "ask"}],
    ],
)
def test_copies_keep_a_reference_of_any_form(demo_model: str, reference: Any) -> None:
    scorer = SAFTScorer(demo_model, reference=reference)
    assert copy.copy(scorer).reference is reference
    again = pickle.loads(pickle.dumps(scorer))
    assert content_of(again.reference) == content_of(reference)
    assert pickle.dumps(again) == pickle.dumps(scorer)


@pytest.mark.parametrize("name", [name for name in OTHER if OTHER[name] is not None])
def test_a_pickle_keeps_every_option(demo_model: str, name: str) -> None:
    scorer = SAFTScorer(demo_model, **{name: OTHER[name]})
    again = pickle.loads(pickle.dumps(scorer))
    if name == "reference":
        assert again.reference.to_dict() == OTHER[name].to_dict()
    else:
        assert getattr(again, name) == OTHER[name]
    assert again._render_config() == scorer._render_config()
    assert pickle.dumps(again) == pickle.dumps(scorer)


def test_a_copy_of_a_scorer_of_an_object_reads_that_object() -> None:
    from scorer_kit import demo_causal_lm

    model = demo_causal_lm()
    assert copy.copy(SAFTScorer(model)).model is model


def test_a_saved_scorer_has_what_travels_and_nothing_else(
    scorer: SAFTScorer, demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    options = {
        name: OTHER[name] for name in ("layer", "readout", "contamination", "dtype", "max_length", "vector_dtype")
    }
    mine = SAFTScorer(demo_model, method="saft", k=1, token="hf_secret", cache_dir=store_dir, **options)
    mine.fit(demo_pool.select(range(60))).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "hf_secret" not in text
    assert str(store_dir) not in text
    again = SAFTScorer.from_pretrained(tmp_path)
    for name, value in options.items():
        assert getattr(again, name) == value, name


def test_the_repr_says_what_it_is(scorer: SAFTScorer, demo_model: str) -> None:
    assert repr(SAFTScorer(demo_model, token="hf_secret")) == f"SAFTScorer({demo_model!r}, method=None, not fitted)"
    fitted = repr(scorer)
    for part in ("method='saft'", "layers=[2]", "response_start", "fitted on 600 rows"):
        assert part in fitted


@pytest.mark.parametrize(
    ("method", "given", "hint"),
    [
        ("", "aim", "It goes to `SAFTScorer.fit(...)`."),
        ("", "contaminaton", "Did you mean `contamination` of `SAFTScorer(...)`?"),
        ("fit", "layer", "It goes to `SAFTScorer(...)`."),
        ("fit", "labeled", "Did you mean `labelled` of `SAFTScorer.fit(...)`?"),
        ("filter", "labelled", "It goes to `SAFTScorer.fit(...)`."),
        ("filter", "saft_threshold", "Did you mean `threshold` of `SAFTScorer.filter(...)`?"),
        ("certify", "alhpa", "Did you mean `alpha` of `SAFTScorer.certify(...)`?"),
        ("suggest_labels", "zzzzz", "'zzzzz'"),
    ],
)
def test_a_misspelt_or_misplaced_argument_is_told_where_it_goes(method: str, given: str, hint: str) -> None:
    scorer = SAFTScorer("a/model")
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{given}'") as refused:
        (getattr(scorer, method) if method else partial(SAFTScorer, "a/model"))(**{given: None})
    assert str(refused.value).endswith(hint)
