"""`SAFTSFTConfig` from YAML, from words and in Python."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from trl import SFTConfig, TrlParser

from saft_hf import SAFTInputError, SAFTSFTConfig, SAFTSFTTrainer
from saft_hf.scorer.options import OPTIONS
from saft_hf.train.config import TRAINER_ARGUMENTS, setting, without_token
from saft_hf.train.filtering import _FIT_OPTIONS, _SCORER_OPTIONS

OWN = [field for field in fields(SAFTSFTConfig) if field.name.startswith("saft_")]


@pytest.mark.smoke
def test_yaml_and_words_set_every_kind_of_option(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(
        "output_dir: there\nsaft_layer: 3\nsaft_contamination: 0.2\nsaft_on_undecided: keep\nsaft_trust_scores: true\n"
        "saft_readout: response_mean\nuse_cpu: true\nbf16: false\n"
    )
    words = ["--config", str(path), "--saft_layer", "2", "--saft_enabled", "false", "--saft_harmful_value", "1"]
    (args,) = TrlParser(SAFTSFTConfig).parse_args_and_config(words)
    assert (args.output_dir, args.saft_layer, args.saft_contamination) == ("there", 2, 0.2)
    assert (args.saft_enabled, args.saft_trust_scores, args.saft_harmful_value) == (False, True, "1")
    assert (args.saft_on_undecided, args.saft_readout) == ("keep", "response_mean")


@pytest.mark.parametrize("name", ["saft_on_undecided", "saft_on_error", "saft_label_sampling"])
def test_unknown_words_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SAFTInputError, match=f"`{name}` must be one of"):
        SAFTSFTConfig(str(tmp_path), use_cpu=True, bf16=False, **{name: "perhaps"})


def test_defaults_are_those_of_sft_config(tmp_path: Path) -> None:
    ours, plain = (config(str(tmp_path), use_cpu=True, bf16=False) for config in (SAFTSFTConfig, SFTConfig))
    differing = [f.name for f in fields(plain) if getattr(ours, f.name) != getattr(plain, f.name)]
    assert differing in ([], ["logging_dir"])
    assert [setting(plain, field.name) for field in OWN] == [field.default for field in OWN]


def test_every_option_is_documented_and_has_help() -> None:
    documented = set(re.findall(r"^        (saft_\w+) \(", SAFTSFTConfig.__doc__ or "", re.M))
    assert documented == {field.name for field in OWN}
    assert all(field.metadata["help"] for field in OWN)


def test_config_has_every_option() -> None:
    table = {f"saft_{option.name}": option for option in OPTIONS if option.in_trainer}
    fields_of = {field.name: field for field in OWN}
    assert table.keys() <= fields_of.keys()
    for name, option in table.items():
        # Whoever gives a trainer nothing to decide by does not lose rows.
        default = None if name == "saft_on_error" else option.default
        assert (fields_of[name].default, fields_of[name].metadata["help"]) == (default, option.help)
    # And each reaches the scorer: none is passed over between the config and the calls.
    taken = {option.name for option in OPTIONS if option.use in ("scorer", "fit") and option.in_trainer}
    assert {*_SCORER_OPTIONS, *_FIT_OPTIONS} == taken


def test_copies_keep_the_token_and_files_do_not(tmp_path: Path) -> None:
    args = SAFTSFTConfig(str(tmp_path), use_cpu=True, bf16=False, hub_token="hf_secret")
    copies = [
        copy.copy(args),
        copy.deepcopy(args),
        replace(args),
        *(pickle.loads(pickle.dumps(args, p)) for p in (2, 5)),
    ]
    assert [one.hub_token for one in copies] == ["hf_secret"] * len(copies)
    args.model_init_kwargs = {"token": "hf_secret", "dtype": "auto"}
    with without_token():
        assert b"hf_secret" not in pickle.dumps(args)
    assert pickle.loads(pickle.dumps(args)).model_init_kwargs == args.model_init_kwargs
    args.model_init_kwargs = None
    assert "hf_secret" not in str(args) + repr(args) + str(args.to_dict()) + args.to_json_string()


def misspelt(name: str) -> str:
    """One letter short."""
    return name[: len(name) // 2 + 2] + name[len(name) // 2 + 3 :]


@pytest.mark.parametrize("name", [field.name for field in OWN])
def test_a_misspelt_or_misplaced_option_is_told_where_it_goes(name: str) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword .* Did you mean `{name}` of `SAFTSFTConfig\("):
        SAFTSFTConfig("out", **{misspelt(name): None})
    if name not in TRAINER_ARGUMENTS:
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'\. It goes to `SAFTSFTConfig\("):
            SAFTSFTTrainer("model", **{name: None})


@pytest.mark.parametrize("name", TRAINER_ARGUMENTS)
def test_likewise_the_arguments_of_the_trainer(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Did you mean `{name}` of `SAFTSFTTrainer\("):
        SAFTSFTTrainer("model", **{misspelt(name): None})
    if name not in {field.name for field in OWN}:
        with pytest.raises(TypeError, match=rf"argument '{name}'\. It goes to `SAFTSFTTrainer\("):
            SAFTSFTConfig("out", **{name: None})


@pytest.mark.parametrize(
    ("given", "meant"),
    [("saft_labeled", "saft_labelled"), ("labelled", "saft_labelled"), ("aim", "saft_aim"), ("k", "saft_k")],
)
def test_other_spellings_and_a_missing_prefix_are_understood(given: str, meant: str) -> None:
    for make in (SAFTSFTConfig, SAFTSFTTrainer):
        with pytest.raises(TypeError, match=rf"'{given}'\. Did you mean `{meant}`"):
            make("out", **{given: None})


def test_what_resembles_nothing_and_what_trl_takes(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"argument 'qqq'$"):
        SAFTSFTConfig("out", qqq=1)
    with pytest.raises(TypeError, match="Did you mean `learning_rate`"):
        SAFTSFTConfig("out", lerning_rate=1)
    ours, trl = (inspect.signature(config) for config in (SAFTSFTConfig, SFTConfig))
    assert list(ours.parameters)[: len(trl.parameters)] == list(trl.parameters)

    @dataclass
    class More(SAFTSFTConfig):
        mine: int = 0

    assert More(str(tmp_path), use_cpu=True, bf16=False, mine=3, saft_layer=2).mine == 3
