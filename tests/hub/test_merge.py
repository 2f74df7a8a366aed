"""Our part goes into an existing card; what others wrote stays to the byte."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from saft_hf.errors import SAFTInputError
from saft_hf.hub.merge import merge_cards, metadata_of, size_category, split_card

STANDING = """---
# the maintainers' note
license: cc-by-4.0   # as the source
pretty_name: "Größe"
tags: [chat]
dataset_info:
  features:
  - {name: prompt, dtype: string}
  splits:
  - name: test
    num_bytes: 10
    num_examples: 2
  download_size: 7
  dataset_size: 10
configs:
- config_name: default
  data_files: [{split: test, path: data/test-*}]
language: [en]
---

# Our rows

Prose with --- dashes.

<!-- a comment -->
---
"""


def info(split: str, rows: int, columns: tuple[str, ...] = ("prompt",)) -> dict[str, Any]:
    return {
        "features": [{"name": name, "dtype": "string"} for name in columns],
        "splits": [{"name": split, "num_bytes": 5 * rows, "num_examples": rows}],
        "download_size": 3 * rows,
        "dataset_size": 5 * rows,
    }


def ours(split: str = "train", config: str = "default", rows: int = 4, **more: Any) -> str:
    name = {} if config == "default" else {"config_name": config}
    folder = "data" if config == "default" else config
    values = {
        "tags": ["saft"],
        "dataset_info": {**name, **info(split, rows)},
        "configs": [{"config_name": config, "data_files": [{"split": split, "path": f"{folder}/{split}-*"}]}],
        **more,
    }
    return (
        f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n\n# A title\n\n"
        f"<!-- saft_hf:begin {config}/{split} -->\n{rows} rows in {split}.\n<!-- saft_hf:end -->\n\n"
        "<!-- saft_hf:begin -->\nAbout.\n<!-- saft_hf:end -->\n"
    )


def test_the_licence_of_others_stays_and_the_size_is_that_of_all_splits() -> None:
    merged = metadata_of(merge_cards(STANDING, ours(rows=998, license="mit", size_categories=["n<1K"])))
    assert (merged["license"], merged["size_categories"]) == ("cc-by-4.0", ["1K<n<10K"])
    alone = metadata_of(merge_cards("# Nothing", ours(rows=998, license="mit", size_categories=["n<1K"])))
    assert (alone["license"], alone["size_categories"]) == ("mit", ["n<1K"])


@pytest.mark.parametrize(
    ("rows", "word"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (999_999, "100K<n<1M"), (10**12, "n>1T")]
)
def test_sizes_are_called_as_the_hub_calls_them(rows: int, word: str) -> None:
    assert size_category(info("train", rows)) == word


@pytest.mark.parametrize("standing", [None, ""])
def test_with_no_card_there_ours_is_the_card(standing: str | None) -> None:
    assert merge_cards(standing, ours()) == ours()


def test_prose_and_metadata_of_others_stay_to_the_byte() -> None:
    merged = merge_cards(STANDING, ours())
    front, body = split_card(merged)
    assert body.startswith(split_card(STANDING)[1])
    for line in ("# the maintainers' note", "license: cc-by-4.0   # as the source", 'pretty_name: "Größe"'):
        assert f"{line}\n" in front
    assert front.endswith("language: [en]\n")
    assert "A title" not in merged
    data = metadata_of(merged)
    assert data["tags"] == ["chat", "saft"]
    assert data["configs"][0]["data_files"] == [
        {"split": "test", "path": "data/test-*"},
        {"split": "train", "path": "data/train-*"},
    ]
    described = data["dataset_info"]
    assert [split["name"] for split in described["splits"]] == ["test", "train"]
    assert (described["dataset_size"], described["download_size"]) == (30, 19)


def test_windows_line_ends_stay() -> None:
    windows = STANDING.replace("\n", "\r\n")
    merged = merge_cards(windows, ours())
    assert merged.count("\n") == merged.count("\r\n")
    assert merged.replace("\r\n", "\n") == merge_cards(STANDING, ours())


def test_a_section_is_replaced_where_it_stands_and_a_new_split_comes_before_what_follows() -> None:
    card = merge_cards(merge_cards("# Mine\n", ours()) + "\nMore of mine.\n", ours("test"))
    again = merge_cards(card, ours(rows=9))
    assert split_card(again)[1] == (
        "# Mine\n\n<!-- saft_hf:begin default/train -->\n9 rows in train.\n<!-- saft_hf:end -->\n\n"
        "<!-- saft_hf:begin default/test -->\n4 rows in test.\n<!-- saft_hf:end -->\n\n"
        "<!-- saft_hf:begin -->\nAbout.\n<!-- saft_hf:end -->\n\nMore of mine.\n"
    )
    assert metadata_of(again)["dataset_info"]["dataset_size"] == 9 * 5 + 4 * 5
    assert metadata_of(again)["dataset_info"]["download_size"] == 9 * 3 + 4 * 3


def test_configurations_stand_side_by_side() -> None:
    data = metadata_of(merge_cards(merge_cards(STANDING, ours(config="b")), ours(config="a")))
    assert [config["config_name"] for config in data["configs"]] == ["default", "b", "a"]
    assert [described["config_name"] for described in data["dataset_info"]] == ["a", "b", "default"]
    assert data["dataset_info"][2]["features"] == info("test", 2)["features"]


def test_other_columns_in_one_configuration_are_refused_before_they_break_it() -> None:
    card = ours().replace("name: prompt", "name: text")
    with pytest.raises(SAFTInputError, match=r"other columns than the split 'test'.*\['text'\], there \['prompt'\]"):
        merge_cards(STANDING, card)
    assert metadata_of(merge_cards(STANDING, card.replace("- name: train", "- name: test")))  # it replaces the only one


@pytest.mark.parametrize(
    ("data_files", "first"),
    [("data.csv", "data.csv"), (["a.csv", "b.csv"], ["a.csv", "b.csv"]), ([{"split": "train", "path": "x"}], None)],
)
def test_short_forms_of_data_files_are_the_split_train(data_files: Any, first: Any) -> None:
    standing = f"---\n{yaml.safe_dump({'configs': [{'config_name': 'default', 'data_files': data_files}]})}---\n"
    files = metadata_of(merge_cards(standing, ours("test")))["configs"][0]["data_files"]
    assert files[0] == {"split": "train", "path": first or "x"}
    assert files[1] == {"split": "test", "path": "data/test-*"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_sizes_that_somebody_left_out_count_as_none(split: str) -> None:
    """As `datasets` reads them."""
    about = {"features": info("test", 1)["features"], "splits": [{"name": split}], "download_size": None}
    described = metadata_of(merge_cards(f"---\n{yaml.safe_dump({'dataset_info': about})}---\n", ours()))["dataset_info"]
    assert [one["name"] for one in described["splits"]] == list(dict.fromkeys([split, "train"]))
    assert (described["dataset_size"], described["download_size"]) == (20, 12)
    empty = metadata_of(merge_cards("---\ndataset_info:\n  splits:\n---\n", ours()))["dataset_info"]
    assert empty["dataset_size"] == 20


@pytest.mark.parametrize(
    "front",
    [
        {"dataset_info": {"splits": {"train": {"num_examples": 3}}}},
        {"dataset_info": {"features": {"prompt": "string"}, "splits": [{"name": "test"}]}},
        {"dataset_info": ["default"]},
        {"configs": [{"data_files": "x.csv"}]},
        {"configs": [{"config_name": "default", "data_files": {"train": "a.csv"}}]},
        {"configs": [{"config_name": "default", "data_files": [{"path": "a.csv"}]}]},
        {"configs": "default"},
    ],
)
def test_metadata_that_nobody_could_read_is_said(front: dict[str, Any]) -> None:
    with pytest.raises(SAFTInputError, match=r"`(configs|dataset_info)` of the existing card.*fix it"):
        merge_cards(f"---\n{yaml.safe_dump(front)}---\n", ours())


@pytest.mark.parametrize("front", ["a: [1\n", "- 1\n", "word\n"])
def test_front_matter_that_cannot_be_read_is_said(front: str) -> None:
    with pytest.raises(SAFTInputError, match="fix it"):
        merge_cards(f"---\n{front}---\n# Mine\n", ours())


def test_an_alias_of_what_is_replaced_is_written_out() -> None:
    standing = "---\ntags: &t [chat]\nother: *t\n---\n# Mine\n"
    assert metadata_of(merge_cards(standing, ours())) | {"dataset_info": 0, "configs": 0} == {
        "tags": ["chat", "saft"],
        "other": ["chat"],
        "dataset_info": 0,
        "configs": 0,
    }


NAMES = st.text("abcdefgh_", min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, VALUES, max_size=5), st.booleans(), st.lists(st.sampled_from(["train", "test"])))
def test_merging_twice_is_merging_once_and_foreign_values_stay(
    foreign: dict[str, Any], in_braces: bool, splits: list[str]
) -> None:
    front = yaml.safe_dump(foreign, default_flow_style=in_braces or None, allow_unicode=True)
    card = f"---\n{front}---\n# Mine\n" if foreign else "# Mine\n"
    before = copy.deepcopy(metadata_of(card))
    for split in splits:
        card = merge_cards(card, ours(split))
        assert merge_cards(card, ours(split)) == card
    after = metadata_of(card)
    assert {key: after[key] for key in before} == before
    assert [split["name"] for split in after.get("dataset_info", {}).get("splits", [])] == list(dict.fromkeys(splits))
    assert "# Mine\n" in card
