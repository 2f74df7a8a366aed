"""A fitted scorer on disk, in a pickle and in a hash: small, whole, the same everywhere."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from safetensors.numpy import load_file
from scorer_kit import demo_causal_lm, demo_tokenizer, sign

from saft_hf import SAFTScorer
from saft_hf.errors import SAFTArtifactError, SAFTInputError

TOKEN = "hf_notARealTokenOnlyForThisTest"


@pytest.fixture
def saved(scorer: SAFTScorer, tmp_path: Path) -> Path:
    scorer.save_pretrained(tmp_path / "scorer")
    return tmp_path / "scorer"


@pytest.mark.smoke
def test_a_loaded_scorer_is_the_saved_one(scorer: SAFTScorer, saved: Path, demo_pool: Dataset, tmp_path: Path) -> None:
    loaded = SAFTScorer.from_pretrained(saved, cache_dir=tmp_path / "empty-store")
    for name in ("layers_", "readouts_", "method_", "k_", "threshold_", "summary_"):
        assert getattr(loaded, name) == getattr(scorer, name), name
    ours, theirs = loaded.score_dataset(demo_pool), scorer.score_dataset(demo_pool)
    assert ours["saft_score"][:] == theirs["saft_score"][:]
    assert ours["saft_status"][:] == theirs["saft_status"][:]
    assert loaded.filter(demo_pool).removed_indices.tolist() == scorer.filter(demo_pool).removed_indices.tolist()


def test_the_same_scorer_is_saved_as_the_same_bytes(scorer: SAFTScorer, saved: Path, tmp_path: Path) -> None:
    SAFTScorer.from_pretrained(saved).save_pretrained(tmp_path / "again")
    scorer.save_pretrained(tmp_path / "over")
    scorer.save_pretrained(tmp_path / "over")
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["README.md", "config.json", "saft_scorer.safetensors"]
    for other in ("again", "over"):
        assert sorted(path.name for path in (tmp_path / other).iterdir()) == names
        for name in names:
            assert (tmp_path / other / name).read_bytes() == (saved / name).read_bytes(), (other, name)


def test_the_card_says_what_the_scorer_is_and_not_where_it_was_made(
    scorer: SAFTScorer, saved: Path, demo_model: str, demo_pool: Dataset
) -> None:
    card = (saved / "README.md").read_text()
    assert "library_name: saft_hf" in card
    assert f"{scorer.summary_.fit.labels.harmful} of 100 labelled rows are harmful" in card
    assert "sees only what stands before it" in card
    assert demo_model not in card
    text = card + (saved / "config.json").read_text()
    assert not [row for row in demo_pool if row["messages"][-1]["content"] in text]


def test_a_tokenizer_without_a_chat_template_is_enough_for_plain_text(demo_pool: Dataset, tmp_path: Path) -> None:
    tokenizer, model = demo_tokenizer(), demo_causal_lm()
    tokenizer.chat_template = None
    rows = Dataset.from_dict({"text": [row["messages"][-1]["content"] for row in demo_pool.select(range(40))]})
    options = {"processing_class": tokenizer, "cache_dir": tmp_path / "store"}
    scorer = SAFTScorer(model, method="saft", layer=2, contamination=0.2, **options).fit(rows)
    scorer.save_pretrained(tmp_path / "scorer")
    loaded = SAFTScorer.from_pretrained(tmp_path / "scorer", model=model, **options)
    assert loaded.filter(rows).removed_indices.tolist() == scorer.filter(rows).removed_indices.tolist() != []


@pytest.mark.parametrize(("named", "meant"), [(".", "scorer"), (".", "_saft/scorer"), ("scorer/config.json", "scorer")])
def test_the_folder_that_was_meant_is_named(scorer: SAFTScorer, tmp_path: Path, named: str, meant: str) -> None:
    scorer.save_pretrained(tmp_path / meant)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # a trainer's folder has the model's, too
    with pytest.raises(SAFTArtifactError, match=re.escape(f"no saved scorer, but {tmp_path / meant} does")):
        SAFTScorer.from_pretrained(tmp_path / named)


def test_a_kernel_from_the_hub_is_code_and_needs_the_callers_trust(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["scorer"]["options"]["attn_implementation"] = "somebody/attention"
    (saved / "config.json").write_text(json.dumps(config))
    sign(saved)
    with pytest.raises(SAFTArtifactError, match=r"trust_remote_code.*somebody/attention"):
        SAFTScorer.from_pretrained(saved)
    loaded = SAFTScorer.from_pretrained(saved, trust_remote_code=True)
    assert loaded.attn_implementation == "somebody/attention"


def test_the_labels_of_a_file_decide_only_on_request(
    demo_model: str,
    demo_pool: Dataset,
    demo_labelled: Dataset,
    store_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted = SAFTScorer(demo_model, layer=2, method="directed", cache_dir=store_dir).fit(demo_pool, demo_labelled)
    fitted.save_pretrained(tmp_path)
    own = fitted.filter(demo_pool)
    above = np.flatnonzero(own.scores > fitted.threshold_).tolist()
    assert own.removed_indices.tolist() != above  # the labels that were given do decide
    assert not caplog.records

    stranger = SAFTScorer.from_pretrained(tmp_path, cache_dir=store_dir)
    for scorer in (stranger, copy.copy(stranger), pickle.loads(pickle.dumps(stranger))):
        caplog.clear()
        result = scorer.filter(demo_pool)
        assert result.removed_indices.tolist() == above
        assert not any("label" in reasons for reasons in result.summary.reasons.values())
        assert re.search(r"\d+ of the 600 rows have a label in the file.*trust_labels=True", caplog.text)
    caplog.clear()
    trusted = SAFTScorer.from_pretrained(tmp_path, cache_dir=store_dir, trust_labels=True)
    for scorer in (
        trusted,
        copy.copy(trusted),
        pickle.loads(pickle.dumps(trusted)),
        stranger.fit(demo_pool, demo_labelled),
    ):
        assert scorer.filter(demo_pool).removed_indices.tolist() == own.removed_indices.tolist()
    assert "trust_labels" not in caplog.text


@pytest.mark.parametrize(
    ("field", "value"), [("token_budget", 1 << 17), ("num_layers", 5), ("num_layers", 3), ("shares_prefix", True)]
)
def test_a_file_asks_for_no_more_than_the_model_is_given(
    demo_model: str,
    demo_pool: Dataset,
    store_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    value: Any,
) -> None:
    rows = demo_pool.select(range(20))
    scorer = SAFTScorer(demo_model, method="saft", layer=2, contamination=0.2, cache_dir=store_dir).fit(rows)
    scorer.save_pretrained(tmp_path)
    change_config(lambda config: config["scorer"]["fit"].update({field: value}))(tmp_path)
    loaded = SAFTScorer.from_pretrained(tmp_path, cache_dir=store_dir)
    if field == "shares_prefix":
        shape = replace(loaded._open_source().shape, shares_prefix=False)
        monkeypatch.setattr(loaded._open_source(), "shape", shape)
    for call in (lambda: loaded(rows[:2]), lambda: loaded.score_dataset(rows), lambda: loaded.filter(rows)):
        with pytest.raises(SAFTArtifactError, match=f"{field} is {value}, expected"):
            call()


def test_how_a_model_is_quantised_never_comes_from_a_file(demo_model: str, demo_pool: Dataset, tmp_path: Path) -> None:
    scorer = SAFTScorer(demo_model, method="saft", layer=2, contamination=0.2, cache_dir=tmp_path / "store")
    scorer.fit(demo_pool.select(range(20)))
    scorer.quantization_config = {"load_in_4bit": True}  # nothing here can quantise
    scorer.save_pretrained(tmp_path / "s")
    assert "load_in_4bit" not in (tmp_path / "s" / "config.json").read_text()
    assert SAFTScorer.from_pretrained(tmp_path / "s").quantization_config is None
    given = SAFTScorer.from_pretrained(tmp_path / "s", quantization_config={"load_in_8bit": True})
    for each in (given, copy.copy(given), pickle.loads(pickle.dumps(given))):
        assert each.quantization_config == {"load_in_8bit": True}
    change_config(lambda config: config["scorer"]["options"].update(quantization_config={"quant_method": "fp8"}))(
        tmp_path / "s"
    )
    with pytest.raises(SAFTArtifactError, match="options: an unknown field 'quantization_config'"):
        SAFTScorer.from_pretrained(tmp_path / "s")


def test_what_could_not_be_loaded_is_not_saved(
    demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    column = "harm\x1b[2J"
    labelled = demo_pool.select(range(60)).rename_column("is_safe", column)
    scorer = SAFTScorer(demo_model, layer=2, method="directed", cache_dir=store_dir)
    scorer.fit(demo_pool, labelled, label_column=column, harmful_value=False)
    with pytest.raises(SAFTInputError, match=r"cannot be saved: fit\.metrics\.labels\.column"):
        scorer.save_pretrained(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_an_unfitted_scorer_is_not_saved(demo_model: str, tmp_path: Path) -> None:
    with pytest.raises(SAFTInputError, match="not fitted"):
        SAFTScorer(demo_model, method="saft").save_pretrained(tmp_path / "scorer")
    assert list(tmp_path.iterdir()) == []


def change_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        sign(folder)

    return apply


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


@pytest.mark.parametrize(
    "damage",
    [
        change_bytes("saft_scorer.safetensors", lambda raw: raw[:-9]),
        change_bytes("saft_scorer.safetensors", lambda raw: raw[:-9] + bytes(9)),
        change_bytes("saft_scorer.safetensors", lambda raw: b""),
        change_bytes("config.json", lambda raw: raw[: len(raw) // 2]),
        change_bytes("config.json", lambda raw: b"\x80\x04N."),  # a pickle
        lambda folder: (folder / "saft_scorer.safetensors").unlink(),
        lambda folder: (folder / "config.json").unlink(),
        change_config(lambda config: config.update(format_version=2)),
        change_config(lambda config: config.update(auto_map={"x": "y"})),
        # Inside `scorer` are what the fit learned, its score, and the scorer's options.
        change_config(lambda config: config["scorer"]["fit"].pop("threshold")),
        change_config(lambda config: config["scorer"].pop("options")),
        change_config(lambda config: config["scorer"]["options"].update(trust_remote_code=True)),
        change_config(lambda config: config["scorer"]["options"].update(token="hf_stolen")),
        change_config(lambda config: config["scorer"]["options"].update(cache_dir="/etc")),
        change_config(lambda config: config["scorer"]["options"].pop("layer")),
        change_config(lambda config: config["scorer"]["options"]["render"].update(max_length=-3)),
        change_config(lambda config: config["scorer"]["options"]["render"].update(code="x")),
        change_config(lambda config: config["scorer"]["fit"].update(readouts=["response_middle"])),
        change_config(lambda config: config["scorer"]["score"].update(subspace=[])),
        change_config(lambda config: config["scorer"]["score"].update(k=0)),
        change_config(lambda config: config["scorer"]["score"].update(k=10**6)),
        change_config(lambda config: config["scorer"]["score"].update(k="4")),
        change_config(lambda config: config["scorer"]["fit"].update(threshold="high")),
        change_config(lambda config: config["scorer"]["fit"].update(layers=[10**6])),
        change_config(lambda config: config["scorer"]["fit"].update(method="magic")),
        change_config(lambda config: config["scorer"]["score"].update(kind="code")),
        change_config(lambda config: config["scorer"]["score"].update(feature="9.response_end")),
        change_config(lambda config: config["scorer"]["fit"].update(model={"a": 1})),
        change_config(lambda config: config["scorer"]["fit"].update(plan_digest="../../../../etc")),
        change_config(lambda config: config["scorer"]["fit"].update(token_budget=-1)),
        change_config(lambda config: config["scorer"]["fit"].update(metrics="none")),
        change_config(lambda config: config["scorer"]["fit"].update(token_budget=10**9)),
        change_config(lambda config: config["scorer"]["fit"].update(certificate={"issued": True})),
        change_config(lambda config: config["scorer"]["fit"]["metrics"].update(source={"dataset": "me/rows"})),
        change_config(lambda config: config["scorer"]["fit"]["metrics"]["pool"].update(rows="<script>")),
    ],
)
def test_damaged_and_hostile_files_are_refused(saved: Path, damage: Callable[[Path], None]) -> None:
    SAFTScorer.from_pretrained(saved)
    damage(saved)
    with pytest.raises(SAFTArtifactError):
        SAFTScorer.from_pretrained(saved)


def test_nothing_that_belongs_to_a_person_or_machine_is_kept(
    demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        scorer = SAFTScorer(
            demo_model,
            method="saft",
            layer=2,
            threshold=0.3,
            token=TOKEN,
            trust_remote_code=True,
            cache_dir=store_dir,
        ).fit(demo_pool.select(range(30)))
        scorer.save_pretrained(tmp_path / "scorer")
        scorer.filter(demo_pool.select(range(30))).save(tmp_path / "result")
        SAFTScorer.from_pretrained(tmp_path / "scorer", token=TOKEN)
    for file in [*tmp_path.rglob("*"), *store_dir.rglob("*")]:
        if file.is_file():
            content = file.read_bytes()
            assert TOKEN.encode() not in content, file
            assert b"trust_remote_code" not in content, file
            assert str(store_dir).encode() not in content, file
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(scorer) + str(scorer) + repr(scorer.summary_)
    assert SAFTScorer.from_pretrained(tmp_path / "scorer").trust_remote_code is False


def test_a_pickle_is_small_and_holds_no_model(scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path) -> None:
    scorer(demo_pool[:3])  # so that the tokenizer and the reader are there, too
    by_object = SAFTScorer(demo_causal_lm(), method="saft", layer=2, k=1, cache_dir=tmp_path).fit(
        demo_pool.select(range(40))
    )
    for each in (scorer, by_object):
        raw = pickle.dumps(each)
        assert len(raw) < 200_000
        assert b"torch" not in raw.replace(b"saft_hf", b"").replace(b"torch_dtype", b"")
        copy = pickle.loads(raw)
        some = demo_pool[:20]
        assert copy(some)["saft_score"].tolist() == each(some)["saft_score"].tolist()
        assert pickle.dumps(copy) == raw


_HASH = """
import sys
from datasets import load_dataset
from datasets.fingerprint import Hasher
from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path
saved, store, cache = sys.argv[1:]
pool = load_dataset("json", data_files=str(demo_rows_path()), split="train", cache_dir=cache)
labelled = pool.shuffle(seed=0).select(range(100))
fitted = SAFTScorer(str(demo_folder()), method="saft", layer=2, cache_dir=store).fit(pool, labelled)
print(Hasher.hash(fitted), Hasher.hash(SAFTScorer.from_pretrained(saved, cache_dir=store)))
"""


@pytest.mark.timeout(120)
def test_the_hash_is_the_same_in_every_process_and_another_for_another_scorer(
    scorer: SAFTScorer, saved: Path, demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    mine = Hasher.hash(scorer)
    scorer(demo_pool[:3])
    assert Hasher.hash(scorer) == mine
    loaded = Hasher.hash(SAFTScorer.from_pretrained(saved, cache_dir=store_dir))
    command = [sys.executable, "-c", _HASH, str(saved), str(store_dir), str(tmp_path)]
    there = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert there.stdout.split() == [mine, loaded]
    other = SAFTScorer(demo_model, method="saft", layer=2, k=1, cache_dir=store_dir).fit(demo_pool)
    assert Hasher.hash(other) != mine


def test_the_tensors_are_the_learned_ones(scorer: SAFTScorer, saved: Path) -> None:
    tensors = load_file(saved / "saft_scorer.safetensors")
    assert scorer.fit_ is not None
    assert np.array_equal(tensors["directions"], scorer.fit_.score.subspace.directions)
    assert np.array_equal(tensors["mean"], scorer.fit_.score.subspace.mean)
    assert np.abs(tensors["directions"] @ tensors["directions"].T - np.eye(len(tensors["directions"]))).max() < 1e-12
