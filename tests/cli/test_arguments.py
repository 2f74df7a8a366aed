"""One parser: every option of the scorer is in the shell, and reaches the scorer."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from saft_hf import SAFTInputError, SAFTScorer
from saft_hf.cli.arguments import Arguments, parse
from saft_hf.cli.help import EXAMPLES
from saft_hf.cli.main import COMMANDS, main
from saft_hf.cli.pipeline import load_and_fit
from saft_hf.scorer.options import OPTIONS, Option

IN_SHELL = [option for option in OPTIONS if option.in_shell]
OTHERS: dict[str, Any] = {"str": "other", "int": 7, "float": 0.25, "bool": True, "list[str]": ["other", "more"]}
FIELDS = {each.name: each for each in fields(Arguments)}


def other(name: str) -> Any:
    """A value of the option's type that is not its default."""
    return OTHERS[str(FIELDS[name].type).removesuffix(" | None")]


def words(values: dict[str, Any]) -> list[str]:
    listed = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return [word for name, value in listed.items() for word in (f"--{name}", *map(str, value))]


def test_shell_has_every_option() -> None:
    assert [name for name in FIELDS if name in {option.name for option in IN_SHELL}] == [o.name for o in IN_SHELL]
    for option in IN_SHELL:
        assert FIELDS[option.name].default == option.default, option.name
        assert FIELDS[option.name].metadata["help"] == option.help, option.name


def test_every_option_reaches_the_scorer(demo_pool: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def init(self: SAFTScorer, model: str, **options: Any) -> None:
        given.update(options)

    def fit(self: SAFTScorer, pool: Dataset, labelled: Dataset | None, **options: Any) -> SAFTScorer:
        given.update(options)
        return self

    monkeypatch.setattr(SAFTScorer, "__init__", init)
    monkeypatch.setattr(SAFTScorer, "fit", fit)
    demo_pool.select(range(3)).to_json(tmp_path / "rows.jsonl")
    rows = {"model_name_or_path": "some/model", "dataset_name": tmp_path / "rows.jsonl"}
    load_and_fit(parse("score", words(rows)))
    assert given == {"revision": None}  # the defaults are those of the signatures
    values = {option.name: other(option.name) for option in IN_SHELL if option.use != "filter"}
    more = {"model_revision": "v1", "labelled_name": tmp_path / "rows.jsonl"}
    load_and_fit(parse("score", words({**rows, **values, **more})))
    assert given == {**values, "revision": "v1"}


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("sft", "cache", "evaluate", "experiment")]
)
def test_a_command_lists_and_takes_its_own_options_only(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {name for name, each in FIELDS.items() if command in each.metadata["commands"]}
    assert own
    assert main([command, "--help_all"]) == 0
    listed = capsys.readouterr().out.split()
    for name in FIELDS:
        assert listed.count(f"--{name}") - EXAMPLES[command].split().count(f"--{name}") == (name in own), name
        value = other(name)
        beside = [each for each in FIELDS[name].metadata["beside"] if each in own]
        given = {name: value, **{each: other(each) for each in beside[:1]}} if name in own else {name: value}
        config = tmp_path / "options.yaml"
        config.write_text(yaml.safe_dump(given))
        for argv in (words(given), ["--config", str(config)]):
            if name in own:
                assert getattr(parse(command, argv), name) == value
            else:
                with pytest.raises(SAFTInputError, match=f"`saft-hf {command}` does not take --{name} "):
                    parse(command, argv)


def test_every_option_has_a_command_that_takes_it() -> None:
    for name, each in FIELDS.items():
        assert each.metadata["commands"], name
        assert set(each.metadata["commands"]) <= set(COMMANDS), name


@pytest.mark.parametrize(
    ("command", "name", "hint"),
    [
        ("filter", "contaminaton", "Did you mean `--contamination` of `saft-hf filter`?"),
        ("filter", "saft_threshold", "Did you mean `--threshold` of `saft-hf filter`?"),
        ("filter", "alpha", "It goes to `saft-hf certify`."),
        ("score", "datset-name", "Did you mean `--dataset_name` of `saft-hf score`?"),
        ("evaluate", "judgs", "Did you mean `--judges` of `saft-hf evaluate`?"),
        ("push", "qqqqqq", "options.)"),
    ],
)
def test_a_misspelt_or_misplaced_option_is_told_where_it_goes(
    command: str, name: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "options.yaml"
    config.write_text(yaml.safe_dump({name: 1}))
    for argv in ([f"--{name}", "1"], ["--config", str(config)]):
        assert main([command, *argv]) == 2
        told = capsys.readouterr().err
        assert f"does not take --{name} 1" in told
        assert told.strip().endswith(hint)


@pytest.mark.parametrize("name", [name for name, each in FIELDS.items() if each.metadata["beside"]])
def test_an_option_without_the_one_that_it_belongs_to_is_refused_in_words_and_in_yaml(
    name: str, tmp_path: Path
) -> None:
    command = next(each for each in FIELDS[name].metadata["commands"] if each not in ("push", "suggest-labels"))
    config = tmp_path / "options.yaml"
    config.write_text(yaml.safe_dump({name: other(name)}))
    for argv in (words({name: other(name)}), ["--config", str(config)]):
        with pytest.raises(SAFTInputError, match=f"`--{name}`: without effect without `--"):
            parse(command, argv)


@pytest.mark.parametrize(
    "option", [option for option in IN_SHELL if option.use != "filter"], ids=lambda each: each.name
)
def test_every_option_has_an_effect_or_is_refused_beside_a_scorer(
    option: Option, demo_pool: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any option that is added to the table, too."""
    given: dict[str, Any] = {}

    def load(name: str, **options: Any) -> SAFTScorer:
        given.update(options)
        return SAFTScorer("some/model")

    monkeypatch.setattr(SAFTScorer, "from_pretrained", load)
    demo_pool.select(range(3)).to_json(tmp_path / "rows.jsonl")
    told = {"scorer": "some/scorer", "dataset_name": tmp_path / "rows.jsonl", option.name: other(option.name)}
    if option.travels or option.learned:
        with pytest.raises(
            SAFTInputError, match=f"`--{option.name}`: without effect beside `--scorer`, which is fitted"
        ):
            load_and_fit(parse("score", words(told)))
    else:
        load_and_fit(parse("score", words(told)))
        assert given[option.name] == other(option.name)


@pytest.mark.parametrize("option", [option for option in IN_SHELL if option.of_labels], ids=lambda each: each.name)
def test_what_says_how_labels_are_read_is_refused_without_labels(option: Option, demo_pool: Dataset) -> None:
    told = {"model_name_or_path": "some/model", "dataset_name": "some/rows", option.name: other(option.name)}
    with pytest.raises(SAFTInputError, match=f"`--{option.name}`: without effect without `--labelled_rows` or"):
        load_and_fit(parse("score", words(told)))
    with pytest.raises(SAFTInputError, match=f"`{option.name}`: without effect without `labelled` rows"):
        SAFTScorer("some/model").fit(demo_pool, **{option.name: other(option.name)})


def test_yaml_may_give_sources_as_mappings(tmp_path: Path) -> None:
    config = tmp_path / "options.yaml"
    sources = ["rows.csv", {"path": "me/rows", "split": "dev", "columns": {"ask": "prompt"}, "harmful": False}]
    config.write_text(yaml.safe_dump({"reference": sources}))
    assert parse("filter", ["--config", str(config)]).reference == sources


@pytest.mark.parametrize("words_of_it", [["--threshold", "-3.1e-05"], ["--threshold=-3.1e-05"]])
def test_a_threshold_is_taken_as_it_is_printed(words_of_it: list[str]) -> None:
    assert parse("filter", words_of_it).threshold == -3.1e-05
