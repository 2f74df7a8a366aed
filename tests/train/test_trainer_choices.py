"""What decides the rows, what is refused, and when the trainer is TRL's own."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from train_kit import TEMPLATE, losses, make_args, make_model, make_tokenizer, pool_rows, prepared, save_model
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from saft_hf import SAFTArtifactError, SAFTInputError, SAFTScorer, SAFTSFTConfig, SAFTSFTTrainer, SAFTUndecidedError
from saft_hf.embed.backbone import Backbone
from saft_hf.scorer import SCORE, STATUS, saving
from saft_hf.scorer.artifact import load_artifact
from saft_hf.scorer.options import OPTIONS, Option
from saft_hf.scorer.probing import PoolFit
from saft_hf.version import versions

NOTHING = {"saft_method": None, "saft_contamination": None}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_model(tmp_path / "model")


def trainer_for(model: Any, folder: Path, rows: Any = None, call: Any = None, **options: Any) -> SAFTSFTTrainer:
    rows = pool_rows() if rows is None else rows
    return SAFTSFTTrainer(model, make_args(folder, **options), train_dataset=rows, **(call or {}))


def kept_of(trainer: SAFTSFTTrainer) -> list[int]:
    assert trainer.saft_result is not None
    return list(trainer.saft_result.kept_indices.tolist())


@pytest.fixture
def no_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened for scoring")

    monkeypatch.setattr(Backbone, "load", refuse)
    monkeypatch.setattr(Backbone, "wrap", refuse)


# -- when nothing is filtered ------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_with_nothing_given_a_model_that_tells_nothing_apart_trains_on_the_input_and_it_says_so(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="saft_hf"):
        trainer = trainer_for(model, tmp_path, **NOTHING)
    assert [record.message for record in caplog.records if "filters NOTHING" in record.message]
    assert len(caplog.records) == 1
    plain = SFTTrainer(model, make_args(tmp_path / "plain"), train_dataset=pool_rows())
    assert prepared(trainer) == prepared(plain)
    trainer.train(), plain.train()
    assert losses(trainer) == losses(plain)
    assert trainer.saft_summary is not None
    assert trainer.saft_summary.public().to_dict() == json.loads((tmp_path / "out" / "saft_summary.json").read_text())
    assert trainer.saft_summary.filtered is False
    assert trainer.saft_summary.method == "reference"
    assert not any(name.startswith("saft_") for entry in trainer.state.log_history for name in entry)
    trainer.create_model_card(model_name="m")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not filtered" in card
    assert "- saft\n" not in card


def test_with_nothing_given_rows_that_the_reference_set_tells_are_left_out_aloud(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model that tells the reference set apart leads to; this one is told where to cut."""

    def decide(learned: Any, scores: np.ndarray, far: Any, fpr: float) -> PoolFit:
        return PoolFit(None, None, None, float(np.sort(scores)[29]), None)

    monkeypatch.setattr("saft_hf.scorer.methods.reference.apply_probe", decide)
    with caplog.at_level(logging.WARNING, logger="saft_hf"):
        trainer = trainer_for(model, tmp_path, **NOTHING)
    assert len(kept_of(trainer)) == len(trainer.train_dataset) == 30
    said = " ".join(record.message for record in caplog.records)
    assert "removed=10" in said
    assert "decided by reference" in said
    assert "`saft_enabled=False` turns the filter off" in said


@pytest.mark.usefixtures("no_scoring")
def test_switched_off_it_is_trl_s_trainer(model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_for(model, tmp_path, call={"saft_labelled": pool_rows()}, saft_enabled=False)
    plain = SFTTrainer(model, make_args(tmp_path / "plain"), train_dataset=pool_rows())
    assert prepared(trainer) == prepared(plain)
    assert trainer.saft_result is trainer.saft_summary is trainer.saft_scorer is None
    assert not caplog.records
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "plain/out").iterdir()
    }


def test_plain_arguments_of_either_kind_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"use_cpu": True, "bf16": False, "report_to": "none"}
    # The default one asks for a GPU, in SFTTrainer too.
    monkeypatch.setattr("saft_hf.train.trainer.SAFTSFTConfig", partial(SAFTSFTConfig, **options))
    for args in (SFTConfig("a", **options), TrainingArguments("b", **{**options, "fp16": False}), None):
        call = {"train_dataset": pool_rows(), "processing_class": make_tokenizer()}
        trainer = SAFTSFTTrainer(make_model(), args, **call)
        assert len(trainer.train_dataset) == 40
        assert isinstance(trainer.args, SFTConfig)
        assert args is None or not isinstance(args, SFTConfig) or trainer.args is args


def test_labels_with_a_plain_config_filter(tmp_path: Path) -> None:
    args = SFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    pool = pool_rows(rows=80)
    call = {"train_dataset": pool, "saft_labelled": pool.select(range(56))}
    trainer = SAFTSFTTrainer(make_model(), args, processing_class=make_tokenizer(), **call)
    assert trainer.args is args
    assert trainer.saft_summary is not None
    assert trainer.saft_summary.filtered


def test_what_sft_trainer_refuses_is_refused_by_it(model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        SAFTSFTTrainer(model, make_args(tmp_path))
    with pytest.raises(TypeError, match="must be a `Dataset` or `IterableDataset`"):
        SAFTSFTTrainer(model, make_args(tmp_path), train_dataset=[{"text": "a"}])


# -- what decides ------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_share_labels_and_threshold_decide_as_the_scorer_does(model: str, tmp_path: Path) -> None:
    pool = pool_rows(rows=80)
    labelled = pool.select(range(56))
    for options, labels in (
        ({"saft_contamination": 0.1}, None),
        ({"saft_contamination": None}, labelled),
        ({"saft_contamination": None, "saft_method": None}, labelled),
        ({"saft_contamination": None, "saft_method": "directed", "saft_aim": "recall=0.9"}, labelled),
        ({"saft_contamination": None, "saft_threshold": 1e-4}, None),
        ({"saft_layer": 2, "saft_readout": "response_mean", "saft_k": 2}, None),
    ):
        trainer = trainer_for(model, tmp_path, pool, call={"saft_labelled": labels}, **options)
        own = {"method": "saft", "contamination": 0.25, **{name[5:]: value for name, value in options.items()}}
        aim = own.pop("aim", None)
        scorer = SAFTScorer(model, **own, cache_dir=tmp_path / "cache").fit(pool, labels, aim=aim)
        assert kept_of(trainer) == scorer.filter(pool).kept_indices.tolist()
        assert trainer.saft_result is not None
        assert len(trainer.saft_result.removed) > 0


def test_a_scorer_as_object_fitted_or_not_and_as_folder(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = SAFTScorer(model, method="saft", contamination=0.1, cache_dir=tmp_path / "cache")
    by_object = trainer_for(model, tmp_path, call={"saft_scorer": fresh}, **NOTHING)
    assert fresh.fit_ is not None
    fresh.save_pretrained(tmp_path / "scorer")
    by_fitted = trainer_for(model, tmp_path, call={"saft_scorer": fresh}, **NOTHING)
    read: list[Any] = []
    monkeypatch.setattr(saving, "load_artifact", lambda folder: [read.append(folder), load_artifact(folder)][1])
    by_folder = trainer_for(model, tmp_path, saft_scorer=str(tmp_path / "scorer"), **NOTHING)
    assert len(read) == 1
    assert kept_of(by_object) == kept_of(by_fitted) == kept_of(by_folder)
    assert len(kept_of(by_object)) == 36
    with pytest.raises(
        SAFTInputError, match="`saft_contamination`: without effect beside `saft_scorer`, which is fitted"
    ):
        trainer_for(model, tmp_path, call={"saft_scorer": fresh}, saft_method=None)
    with pytest.raises(SAFTInputError, match="`saft_aim`: without effect beside `saft_scorer`, which is fitted"):
        trainer_for(model, tmp_path, call={"saft_scorer": fresh}, saft_aim="f1", **NOTHING)
    with pytest.raises(SAFTInputError, match="`saft_labelled` and a fitted `saft_scorer`"):
        trainer_for(model, tmp_path, call={"saft_scorer": fresh, "saft_labelled": pool_rows()}, **NOTHING)


def test_scores_that_came_with_the_data_do_not_decide(model: str, tmp_path: Path) -> None:
    plain = trainer_for(model, tmp_path)
    zeros = pool_rows().add_column(SCORE, [0.0] * 40).add_column(STATUS, ["ok"] * 40)
    trainer = trainer_for(model, tmp_path, zeros)
    assert kept_of(trainer) == kept_of(plain)
    assert SCORE not in trainer.train_dataset.column_names


@pytest.mark.parametrize("given", ["object", "folder"])
def test_a_scorer_fitted_offline_serves_where_the_tokens_are_the_same(given: str, model: str, tmp_path: Path) -> None:
    pool, unmarked = pool_rows("messages"), TEMPLATE
    for marker in ("{% generation %}", "{% endgeneration %}"):
        unmarked = unmarked.replace(marker, "")
    offline = make_tokenizer(unmarked)
    scorer = SAFTScorer(
        model, method="saft", contamination=0.25, cache_dir=tmp_path / "cache", processing_class=offline
    ).fit(pool)
    kept = scorer.filter(pool).kept_indices.tolist()
    scorer.save_pretrained(tmp_path / "scorer")
    call = {"saft_scorer": scorer if given == "object" else tmp_path / "scorer", "processing_class": offline}
    path = tmp_path / "training.jinja"
    for template in (TEMPLATE, unmarked + "{# the same #}"):
        path.write_text(template)
        options = {"chat_template_path": str(path), "assistant_only_loss": template == TEMPLATE, **NOTHING}
        assert kept_of(trainer_for(model, tmp_path, pool, call, **options)) == kept
    path.write_text(TEMPLATE.replace("{{ m.role }}|>", "{{ m.role }}|> "))
    with pytest.raises(SAFTArtifactError, match="another chat template"):
        trainer_for(model, tmp_path, pool, call, chat_template_path=str(path), **NOTHING)
    assert scorer.processing_class is offline


@pytest.mark.smoke
def test_rows_that_were_scored_before_are_read_from_the_store(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, options = pool_rows(), {"method": "saft", "contamination": 0.25, "cache_dir": tmp_path / "cache"}
    scorer = SAFTScorer(model, **options).fit(pool)  # type: ignore[arg-type]
    scorer.save_pretrained(tmp_path / "scorer")
    scored = scorer.score_dataset(pool).shuffle(seed=1)
    kept = scorer.filter(scored).kept_indices.tolist()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a hidden state was computed again")

    monkeypatch.setattr(Backbone, "read", refuse)
    assert kept_of(trainer_for(model, tmp_path, scored)) == kept  # fitted again, from the same vectors
    monkeypatch.setattr(Backbone, "load", refuse)
    for given in (scorer, tmp_path / "scorer"):
        assert kept_of(trainer_for(model, tmp_path, scored, {"saft_scorer": given}, **NOTHING)) == kept
    with pytest.raises(AssertionError, match="computed again"):
        trainer_for(model, tmp_path, pool_rows(seed=5), {"saft_scorer": scorer}, **NOTHING)


@pytest.mark.usefixtures("no_scoring")
def test_trusted_scores_decide_without_a_model(model: str, tmp_path: Path) -> None:
    rows = pool_rows().add_column(SCORE, np.arange(40, dtype=np.float32)).add_column(STATUS, ["ok"] * 40)
    for options in ({**NOTHING, "saft_threshold": 29.0}, {**NOTHING, "saft_contamination": 0.25}):
        trainer = trainer_for(model, tmp_path, rows, saft_trust_scores=True, **options)
        assert kept_of(trainer) == list(range(30))
        assert SCORE not in trainer.train_dataset.column_names
        known = trainer.saft_summary.provenance
        told = {name.removeprefix("saft_"): value for name, value in options.items() if value is not None}
        assert known.options == {**told, "trust_scores": True}
        written = json.loads((tmp_path / "out/_saft/summary.json").read_text())["provenance"]
        assert (written["input_rows"], set(written["versions"])) == (40, set(versions()))
    with pytest.raises(SAFTInputError, match="no column 'saft_score'"):
        trainer_for(model, tmp_path, saft_trust_scores=True, **NOTHING)
    with pytest.raises(SAFTInputError, match="needs `saft_threshold`"):
        trainer_for(model, tmp_path, rows, saft_trust_scores=True, **NOTHING)


@pytest.mark.parametrize("labels", ["one class", "scorer"])
def test_refusal_raises_or_keeps_every_row(
    labels: str, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    call: dict[str, Any] = {"saft_labelled": pool_rows().filter(lambda row: not row["is_harmful"])}
    if labels == "scorer":
        call = {"saft_scorer": SAFTScorer(model, method="saft", cache_dir=tmp_path / "cache").fit(pool_rows())}
    with pytest.raises(SAFTUndecidedError, match="on_undecided='keep'"):
        trainer_for(model, tmp_path, call=call, **NOTHING)
    trainer = trainer_for(model, tmp_path, call=call, saft_on_undecided="keep", **NOTHING)
    assert any("filters NOTHING" in record.message for record in caplog.records)
    plain = SFTTrainer(model, make_args(tmp_path / "plain"), train_dataset=pool_rows())
    assert prepared(trainer) == prepared(plain)
    assert trainer.saft_summary is not None
    assert trainer.saft_summary.filtered is False
    assert np.isfinite(trainer.saft_result.scores).all()  # type: ignore[union-attr]


def test_where_labels_alone_decide_the_trainer_says_so(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_rows(rows=80)
    scorer = SAFTScorer(model, method="directed", cache_dir=tmp_path / "cache").fit(pool, pool.select(range(40)))
    # Nothing but rows above the threshold, ten of which a person labelled harmful.
    worst = scorer.filter(pool).removed
    options = {**NOTHING, "saft_on_undecided": "keep", "saft_eval": "score"}
    trainer = trainer_for(model, tmp_path, worst, {"saft_scorer": scorer, "eval_dataset": pool}, **options)
    assert len(trainer.train_dataset) == len(worst) - 10 > 0
    summary = trainer.saft_summary
    assert (summary.filtered, summary.threshold_from, summary.removed) == (True, "labels", 10)
    assert summary.evaluation["eval"].kept == len(pool)
    assert any("Labels alone decide" in text for text in caplog.messages)
    assert not any("filters NOTHING" in text for text in caplog.messages)


def test_rows_without_a_score(model: str, tmp_path: Path) -> None:
    rows = Dataset.from_list([*pool_rows(), {"prompt": "heron", "completion": " ", "is_harmful": False}])
    trained = {
        word: len(trainer_for(model, tmp_path, rows, saft_on_error=word).train_dataset) for word in ("exclude", "keep")
    }
    assert trained == {"exclude": 30, "keep": 31}
    with pytest.raises(SAFTInputError, match="on_error='raise'"):
        trainer_for(model, tmp_path, rows, saft_on_error="raise")


@pytest.mark.parametrize("case", ["everything", "transform", "model_init_kwargs"])
def test_what_cannot_be_filtered_is_refused(case: str, model: str, tmp_path: Path) -> None:
    rows, options = pool_rows(), {}
    match = case
    if case == "everything":
        options, match = {**NOTHING, "saft_method": "saft", "saft_threshold": -1.0}, "removes .* scored rows"
    elif case == "transform":
        rows = rows.with_transform(lambda batch: batch)
    else:
        options, match = {"model_init_kwargs": {"subfolder": "there"}}, "'subfolder'"
    with pytest.raises((SAFTInputError, SAFTUndecidedError), match=match):
        trainer_for(model, tmp_path, rows, **options)


# -- the scoring model -------------------------------------------------------------------------------------------------


def test_the_scoring_model_is_gone_when_training_starts(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Any]] = []
    load = Backbone.load.__func__  # type: ignore[attr-defined]

    def watched(cls: Any, *args: Any, **kwargs: Any) -> Backbone:
        backbone: Backbone = load(cls, *args, **kwargs)
        seen.append(weakref.ref(backbone._open))
        return backbone

    monkeypatch.setattr(Backbone, "load", classmethod(watched))

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    before = tensors()
    plain = SFTTrainer(model, make_args(tmp_path / "plain"), train_dataset=pool_rows())
    held = tensors() - before
    trainer = trainer_for(model, tmp_path)
    assert seen
    assert all(reference() is None for reference in seen)
    assert tensors() - before == 2 * held
    assert type(plain.model) is type(trainer.model)


def test_options_of_the_model_reach_the_scoring_model(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    load = Backbone.load.__func__  # type: ignore[attr-defined]

    def watched(cls: Any, name: str, **kwargs: Any) -> Backbone:
        given.update(kwargs, name=name)
        return load(cls, name, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(Backbone, "load", classmethod(watched))
    kwargs = {"dtype": "bfloat16", "attn_implementation": "eager", "revision": "main", "device_map": None}
    trainer_for(model, tmp_path, model_init_kwargs=kwargs)
    assert given["name"] == model
    assert {name: given[name] for name in kwargs} == kwargs
    assert given["trust_remote_code"] is False


@pytest.mark.parametrize("as_argument", [False, True])
def test_a_reference_set_reaches_the_scorer_and_asks_for_a_decision(
    model: str, tmp_path: Path, as_argument: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fit(self: SAFTScorer, *_: Any, on_undecided: str, **__: Any) -> None:
        asked.append((self.reference, on_undecided))
        raise SAFTUndecidedError("enough")

    monkeypatch.setattr(SAFTScorer, "fit", fit)
    rows, names = pool_rows(), ["a.csv", "b.csv,split=dev"]
    with pytest.raises(SAFTUndecidedError, match="enough"):
        trainer_for(
            model, tmp_path, call={"saft_reference": rows} if as_argument else {}, **NOTHING, saft_reference=names
        )
    assert asked == [(rows if as_argument else names, "raise")]


# -- options without effect --------------------------------------------------------------------------------------------

IN_TRAINER = [
    each
    for each in OPTIONS
    if each.in_trainer and (each.travels or each.learned) and each.use != "filter" and each.name != "on_undecided"
]
OTHERS = {"layer": 1, "readout": "response_mean", "method": "saft", "k": 2, "threshold": 0.5, "contamination": 0.2}
OTHERS |= {"label_column": "label", "harmful_value": "x", "label_sampling": "other"}
OTHERS |= {"aim": "f1", "fit_rows": 50, "reference": ["rows.csv"]}


@pytest.mark.parametrize("option", IN_TRAINER, ids=lambda each: each.name)
def test_every_option_is_refused_where_it_would_do_nothing(
    model: str, tmp_path: Path, option: Option, no_scoring: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any option that is added to the table, too."""
    given = {**NOTHING, f"saft_{option.name}": OTHERS[option.name]}
    fitted, new = SAFTScorer(model), SAFTScorer(model)
    monkeypatch.setattr(fitted, "fit_", object())
    refused = {
        "beside `saft_scorer`, which is fitted already": {"saft_scorer": fitted},
        "beside `saft_scorer`, which brings its own": {"saft_scorer": new} if option.use == "scorer" else None,
    }
    for why, call in refused.items():
        if call is not None:
            with pytest.raises(SAFTInputError, match=f"`saft_{option.name}`: without effect {why}"):
                trainer_for(model, tmp_path, call=call, **given)
    if option.of_labels:
        with pytest.raises(SAFTInputError, match=f"`saft_{option.name}`: without effect without `saft_labelled` rows"):
            trainer_for(model, tmp_path, **given)
    if option.name not in ("threshold", "contamination"):
        with pytest.raises(SAFTInputError, match=f"`saft_{option.name}`: without effect beside `saft_trust_scores`"):
            trainer_for(model, tmp_path, saft_trust_scores=True, **given)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("saft_delta", 0.2, "without `saft_alpha`"),
        ("saft_looks", 2, "without `saft_alpha`"),
        ("saft_eval", "score", "without an `eval_dataset`"),
    ],
)
def test_what_belongs_to_another_argument_is_refused_without_it(
    model: str, tmp_path: Path, name: str, value: Any, why: str, no_scoring: None
) -> None:
    with pytest.raises(SAFTInputError, match=f"`{name}`: without effect {why}"):
        trainer_for(model, tmp_path, **{name: value})
    assert trainer_for(model, tmp_path, saft_enabled=False, **{name: value}).saft_result is None


def test_what_each_value_loses_is_told_of_a_dataset(model: str, tmp_path: Path) -> None:
    rows, scorer = pool_rows(), SAFTScorer(model, method="saft", contamination=0.25, cache_dir=tmp_path / "cache")
    for call in ({}, {"saft_scorer": scorer.fit(rows)}):
        given = {**NOTHING, **({} if call else {"saft_contamination": 0.25, "saft_method": "saft"})}
        summary = trainer_for(model, tmp_path, rows, call, saft_by="is_harmful", **given).saft_summary
        assert sum(share.removed for share in summary.by["is_harmful"].values()) == summary.removed == 10
    for given, more in ((rows.to_iterable_dataset(), {}), (rows, {"saft_trust_scores": True, "saft_method": None})):
        with pytest.raises(SAFTInputError, match="`saft_by`: without effect with a stream"):
            trainer_for(model, tmp_path, given, saft_by="is_harmful", **more)


def test_labels_that_certify_are_read_as_the_options_say_whatever_was_fitted(model: str, tmp_path: Path) -> None:
    """`saft_label_column` and `saft_harmful_value` have an effect without `saft_labelled`, where labels are fresh."""
    with pytest.raises(SAFTInputError, match="'verdict' is not in"):
        trainer_for(
            model,
            tmp_path,
            call={"saft_fresh_labels": pool_rows()},
            saft_alpha=0.1,
            saft_label_column="verdict",
            saft_harmful_value="bad",
        )
