"""Cards of scorers, rows and models: complete, valid for the Hub, honest in every branch, and safe to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import yaml
from cards_kit import (
    CARDS,
    DATASET_INFO,
    EXAMPLES,
    EXPLAINED,
    FILTERED,
    FIT,
    FITTED,
    NOTE,
    PROBED,
    SEVERAL,
    TRL_CARD,
    VERSIONS,
    card_of_model,
    card_of_rows,
    card_of_scorer,
)
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from saft_hf.hub import cards, merge_cards, model_section
from saft_hf.status import RowStatus
from saft_hf.summary import (
    CertificateSummary,
    Confounds,
    DatasetSource,
    Demonstrations,
    GroupShare,
    LabelTest,
    Leverage,
    PoolCounts,
    Summary,
    ThresholdEffect,
)

NO_LABELS = replace(FIT, labels=None)
TEST = LabelTest(auroc=0.96, p_value=0.002, permutations=499, weights={"L16/response_start": 0.75, "reference": 0.25})
LEARNED_FIT = replace(FIT, published=None, test=TEST, aim="fpr=0.05", expected=ThresholdEffect(fpr=0.05, recall=0.9))
LEARNED = replace(
    FITTED,
    layers=(16, 24),
    readouts=("response_start", "response_mean"),
    method="auto",
    k=None,
    threshold_from="fpr=0.05",
    fit=LEARNED_FIT,
)
CERTIFICATE = CertificateSummary(
    issued=True, alpha=0.05, delta=0.1, labels=60, harmful_labels=0, text="at most 5 % with 90 %"
)


# -- what they say -----------------------------------------------------------------------------------------------------


SHOWN = Demonstrations(rows=72, different=72, share=0.03, source="me/refusals")


@pytest.mark.parametrize("name", CARDS)
def test_the_examples_are_current(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "versions", lambda: VERSIONS)
    assert (EXAMPLES / name).read_text(encoding="utf-8") == CARDS[name](), (
        "a template or the example's summary has changed: run `PYTHONPATH=. python tests/hub/cards_kit.py`"
    )


@pytest.mark.smoke
def test_the_hub_reads_the_front_matter() -> None:
    assert ModelCard(card_of_scorer()).data.to_dict() == {
        "base_model": "meta-llama/Llama-2-7b-chat-hf",
        "library_name": "saft_hf",
        "tags": ["saft", "data-filtering"],
    }
    data = DatasetCard(card_of_rows()).data.to_dict()
    assert data["tags"] == ["saft", "data-filtering"]
    assert data["source_datasets"] == ["me/rows"]
    assert (data["license"], data["size_categories"]) == ("mit", ["1K<n<10K"])
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]},
    ]
    assert data["dataset_info"] == DATASET_INFO
    model = ModelCard(card_of_model()).data.to_dict()
    assert model["tags"] == ["generated_from_trainer", "sft", "trl", "saft"]
    assert model["datasets"] == ["me/rows", "me/filtered-rows"]
    assert model["base_model"] == "meta-llama/Llama-2-7b-chat-hf"


def test_the_hub_shows_how_well_a_learned_score_ranks() -> None:
    [result] = ModelCard(card_of_scorer(LEARNED)).data.eval_results or []
    assert (result.metric_type, result.metric_value) == ("roc_auc", 0.96)
    assert result.dataset_name == "100 labelled rows of the pool"


def test_a_value_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="repo_id"):
        cards._fill("scorer", FITTED, metadata="", title="")
    with pytest.raises(UndefinedError, match="'None' has no attribute"):
        card_of_scorer(replace(FITTED, fit=None))


@pytest.mark.parametrize(
    ("summary", "says", "never"),
    [
        (FITTED, "25 of 100 labelled rows are harmful (column `is_safe`)", "No decision"),
        (FITTED, "The best F1 on them is 0.50", "Out of fold"),
        (replace(FITTED, readouts=("response_mean",)), "It is not transferable", "A safe and an unsafe"),
        (replace(FITTED, method="other"), "It is not transferable", "has no sign"),
        (replace(FITTED, model=None), "not named on the Hub", "Scoring loads"),
        (replace(FITTED, model_revision=None), "| revision | not known |", "2222"),
        (replace(FITTED, threshold_from="given", fit=NO_LABELS), "given by hand", "labelled rows"),
        (
            replace(FITTED, threshold_from="contamination", fit=replace(NO_LABELS, contamination=0.2)),
            "removes the 20.0 % of the pool",
            "labelled rows",
        ),
        (replace(FITTED, threshold_from="none", threshold=None, fit=NO_LABELS), "removes none", "scorer.filter"),
        (replace(FITTED, threshold=None, undecided="a reason"), "**No decision is taken**: a reason.", "scorer.filter"),
        (
            replace(FITTED, fit=replace(FIT, pool=PoolCounts(rows=3000, scored=2997, unique=9))),
            "2997 of them have a score.",
            "which are above",
        ),
        (
            LEARNED,
            "remove 90.0 % of the\nharmful and, on average over draws of the labels, 5.0 % of the benign rows",
            "spectral gap",
        ),
        (LEARNED, "5.0 % of the benign rows; one draw may lose twice as many.", "too few"),
        (replace(LEARNED, threshold_from="fpr=0.05@0.9"), "the aim `fpr=0.05@0.9`, on labelled rows", "one draw may"),
        (LEARNED, "the aim `fpr=0.05`, on labelled rows", "too few"),
        (LEARNED, "at least as well with\nprobability 0.002 (499 permutations)", "has no sign"),
        (LEARNED, "| `L16/response_start` | 75.0 % |\n| `reference` | 25.0 % |", "candidate"),
        (
            replace(LEARNED, fit=replace(LEARNED_FIT, expected=ThresholdEffect(fpr=0.1, recall=0.9, attainable=False))),
            "too few to hold what was aimed for",
            "too few to tell",
        ),
        (
            replace(LEARNED, fit=replace(LEARNED_FIT, test=LabelTest(auroc=1.0, p_value=1.0, permutations=0))),
            "too few to tell it from chance",
            "probability",
        ),
        (
            replace(LEARNED, threshold=None, threshold_from="none", fit=replace(LEARNED_FIT, expected=None)),
            "removes none",
            "the aim",
        ),
        (replace(FITTED, k=1), "1 principal direction,", "directions,"),
        (PROBED, "It was fitted on no pool", "The pool it was fitted on"),
        (PROBED, 'reference="me/llama-2-saft")\nscorer.fit(rows)', "from_pretrained"),
        (
            PROBED,
            f"| PKU-Alignment/BeaverTails | `{'5' * 40}` | CC BY-NC 4.0 | 12,000 | 9,000 | 6,186 |",
            "removes rows",
        ),
        (PROBED, "over unseen prompts of the same sources its AUROC is 0.875.", "AUROC is 0.812"),
        (PROBED, "BeaverTails: harmful rows, found, by unseen prompts of the same source | 43.8 % |", "unseen source"),
        (SEVERAL, "AUROC is 0.812 over sources, and 0.875 over prompts", "estimated to be harmful"),
        (SEVERAL, "| PKU-Alignment/BeaverTails: harmful rows, found | 43.8 % |", "unseen prompts of"),
        (PROBED, "| ours.jsonl: benign rows, lost | 2.5 % |", "one harmful source: none"),
        (PROBED, "- Note: The reference has one harmful source", "no source of harmless rows"),
        (EXPLAINED, "12.5 % are estimated to be harmful (90 % interval 10.0 % to 15.0 %)", "fitted on no pool"),
        (EXPLAINED, "what the pool was estimated to be made of, not from labels", "labelled rows"),
    ],
)
def test_what_the_card_of_a_scorer_says(summary: Summary, says: str, never: str) -> None:
    text = card_of_scorer(summary)
    assert says in text
    assert never not in text


def test_a_scorer_in_a_folder_is_loaded_from_there() -> None:
    assert 'from_pretrained("path/to/this/folder")' in card_of_scorer(repo_id=None)


@pytest.mark.parametrize(
    ("changes", "says", "never"),
    [
        ({}, "3,000 rows of [me/rows](https://huggingface.co/datasets/me/rows)", "not filtered"),
        ({}, f"`meta-llama/Llama-2-7b-chat-hf` at `{'2' * 40}`", "stream"),
        ({}, f"- Note: {NOTE}", "Warning"),
        ({}, "25 of 100 labelled rows are harmful", "aim"),
        ({"source": None}, "3,000 rows, 600", "me/rows"),
        ({"scorer_repo": None}, "meta-llama", "| scorer |"),
        ({"model": None}, "`saft`", "| model that was read |"),
        ({"k": 1}, "1 principal direction |", "principal directions"),
        ({"fit": EXPLAINED.fit}, "in the probe [me/llama-2-probe](https://huggingface.co/me/llama-2-probe)", "raise"),
        (
            {"fit": EXPLAINED.fit, "threshold_from": "reference"},
            "| PKU-Alignment/BeaverTails: harmful | 12.5 % | 75.0 % |",
            "labels used",
        ),
        ({"fit": EXPLAINED.fit}, "7 of 2,997 rows are unlike all of these.", "labels used"),
        ({"fit": None}, "`saft`", "labels used"),
        ({"layers": (16, 24)}, "layers 16, 24: `response_start`", "layer 16"),
        ({"certificate": CERTIFICATE}, "| certificate | at most 5 % with 90 % |", "not bounded"),
        ({"layers": (), "readouts": (), "k": None}, "`saft` |", "read at"),
        ({"threshold_from": "fpr=0.05"}, "the aim `fpr=0.05`, on labelled rows", "F1"),
        (
            {"threshold_from": "contamination", "fit": replace(FIT, contamination=0.2)},
            "| an expected harmful share of 20.0% |",
            "aim",
        ),
        (
            {"threshold_from": "contamination", "fit": replace(LEARNED_FIT, contamination=0.2)},
            "| an expected harmful share of 20.0%, on labelled rows |",
            "aim",
        ),
        (
            {"threshold_from": "certificate", "certificate": CERTIFICATE},
            "the largest set of rows that fresh labels certify",
            "F1",
        ),
        ({"threshold_from": "certificate"}, "of rows that may not be these", "largest set"),
        (
            {"filtered": False, "threshold": None, "undecided": "a reason"},
            "**not filtered** by SAFT: a reason.",
            "| kept",
        ),
        ({"filtered": False, "undecided": "a reason"}, "need no decision about any row: try them", "mixed in as"),
        (
            {"demonstrations": SHOWN},
            "`source: demonstration`, from me/refusals; 3.0% of the kept rows | 72 |",
            "try them",
        ),
        (
            {"demonstrations": SHOWN, "filtered": False, "undecided": "a reason"},
            "72 were mixed in as demonstrations, safe answers to harmful requests: `source: demonstration`, from me/",
            "try them",
        ),
        (
            {"action": "mask", "masked": 598},
            "Of these, 598 stayed among the rows with their responses masked out of the loss.",
            "mixed in",
        ),
        (
            {"confounds": Confounds(rows=9, spearman={}, warn_above=0.5, warnings=("It follows the length.",))},
            "- Warning: It follows the length.",
            "None",
        ),
    ],
)
def test_what_the_cards_of_rows_and_models_say(changes: dict[str, Any], says: str, never: str) -> None:
    for card in (card_of_rows, card_of_model):
        body = card(replace(FILTERED, **changes)).split("---\n", 2)[2]
        assert says in body
        assert never not in body


def test_counts_of_a_stream_and_of_the_reasons_add_up() -> None:
    stream = replace(FILTERED, stream=True, rows=None, kept=5, removed=2, errored=0, reasons={})
    assert cards._counts(stream) == [("kept", 5), ("removed", 2)]
    assert "a stream, filtered while the model trained" in model_section(stream)
    assert sum(count for _, count in cards._counts(FILTERED)) == 3000


def test_every_status_is_explained() -> None:
    statuses = {str(status): 1 for status in RowStatus if status is not RowStatus.OK}
    counts = cards._counts(replace(FILTERED, reasons={"errored": statuses}))
    assert len({what for what, _ in counts}) == len(statuses)
    assert not [what for what, _ in counts if "_" in what or what.endswith(": truncated")]


def test_rows_that_were_only_scored() -> None:
    scored = replace(FILTERED, filtered=False, reasons={}, statuses={"ok": 2998, "truncated": 2})
    card = card_of_rows(scored, audit=None)
    assert "**none was removed**" in card
    assert "| with a score | 2,998 |" in card
    assert "removed as likely harmful" not in card
    assert "saft_private" not in card


def test_another_configuration_is_named() -> None:
    card = card_of_rows(config="chat", split="test")
    assert 'load_dataset("me/filtered-rows", "chat", split="test")' in card
    assert "path: chat/test-*" in card
    assert "## What was filtered: configuration `chat`, split `test`" in card


def test_a_model_that_was_not_filtered_is_not_tagged() -> None:
    section = model_section(Summary(undecided="no labels were given"))
    assert section.startswith("<!-- saft_hf:begin -->")
    assert ModelCard(merge_cards(TRL_CARD, section)).data.to_dict()["tags"] == ["generated_from_trainer", "sft", "trl"]


# -- what comes from outside -------------------------------------------------------------------------------------------

# Every field that holds text is set in one of these.
FULL = replace(
    FILTERED,
    undecided="why",
    certificate=CERTIFICATE,
    confounds=Confounds(rows=9, spearman={"length": 0.9}, warn_above=0.5, warnings=("It follows the length.",)),
    leverage=Leverage(top_row_share=1, top_copies_share=1, top_copies=1, warn_above=0.5, warnings=("One row.",)),
    groups={
        "is_refusal": GroupShare(rows=1, kept=0, removed=1, share=0, low=0, high=1, confidence=1, warnings=("Few.",))
    },
    source=DatasetSource(dataset="me/rows", revision="abc", config="chat", split="train"),
    fit=LEARNED_FIT,
)
SUMMARIES = {
    "filtered": FULL,
    "without an aim": replace(FULL, threshold_from="f1", fit=replace(FIT, notes=("One.", "Two."))),
    "undecided": replace(FULL, filtered=False, threshold=None, threshold_from="none"),
    "scored": replace(FULL, filtered=False, statuses={"ok": 2, "odd": 1}),
    "stream": replace(FULL, stream=True, rows=None),
    "by a probe": replace(FULL, fit=EXPLAINED.fit),
}
EVIL = (
    "](http://evil) <script> | # \n## Certified",
    "\n\n## Certified\n\n- [x](http://evil) ![x](x) **x** `x` <b>\n<!-- saft_hf:end -->",
    "``` | `",
    "a\\|b \\` <!-- saft_hf:begin --> www.evil.example a@evil.example https://evil.example/_x_",
    "- x", "1. x", "> x", "~~~", "---", "$x$", "&#91;x&#93;(x)", "\u202ex\u2028y\x0bz", "`", "` `", "x" * 2000,
)  # fmt: skip


def with_texts(value: Any, text: str) -> Any:
    """The value with all of its texts replaced; keys of dictionaries are texts too."""
    if isinstance(value, str):
        return text
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: with_texts(getattr(value, field.name), text) for field in fields(value)})
    if isinstance(value, dict):
        return {f"{text}{i or ''}": with_texts(item, text) for i, item in enumerate(value.values())}
    return tuple(with_texts(item, text) for item in value) if isinstance(value, tuple) else value


def structure(card: str) -> tuple[list[str], list[tuple[str, str]]]:
    """What a renderer makes of a card: its blocks and, in order of their kind, the links, images and HTML."""
    markdown_it = pytest.importorskip("markdown_it")
    body = card.split("---\n", 2)[2]
    blocks, inside = [], []
    for token in markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body):
        blocks.append(f"{token.type}{token.tag}")
        for child in token.children or ():
            if child.type in ("html_inline", "image", "strong_open", "em_open", "s_open", "hardbreak"):
                inside.append((child.type, child.content))
            elif child.type == "link_open":
                inside.append((child.type, str(child.attrs["href"])))
            elif child.type == "text" and any(sign in child.content for sign in ("://", "www.", "@")):
                inside.append(("autolink", child.content))
    return blocks, inside


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
@pytest.mark.parametrize("make", CARDS.values(), ids=CARDS)
def test_no_text_from_outside_forms_structure(make: Callable[[Summary], str], evil: str) -> None:
    for summary in SUMMARIES.values():
        if make is card_of_scorer and summary.rows is None:
            continue
        changed, plain = make(with_texts(summary, evil)), make(with_texts(summary, "word"))
        assert changed != plain
        (blocks, inside), (same_blocks, same_inside) = structure(changed), structure(plain)
        assert blocks == same_blocks
        new = [one for one in inside if one not in same_inside]
        assert all(url.startswith("https://huggingface.co/") and "evil" not in url for _, url in new), new
        assert changed.count("<!--") == plain.count("<!--")


@pytest.mark.parametrize("evil", EVIL[:-1], ids=range(len(EVIL) - 1))
def test_the_front_matter_holds_no_name_that_no_repository_can_have(evil: str) -> None:
    bad = replace(FULL, model=evil, dataset_repo=evil, source=DatasetSource(dataset=evil, license=evil))
    for text in (card_of_scorer(bad), card_of_rows(bad), model_section(bad)):
        data = yaml.safe_load(text.split("---\n")[1])
        known = {"library_name", "tags", "dataset_info", "configs", "model_name", "model-index", "size_categories"}
        assert set(data) <= known


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_name_is_one_code_and_any_text_one_paragraph(name: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    [_, code, _] = parser.parse(cards._code(name))
    assert [child.type for child in code.children] == ["code_inline"]
    [_, text, _] = parser.parse(f"x {cards._text(name)}")
    assert {child.type for child in text.children} <= {"text", "text_special", "code_inline"}
    cells = parser.parse(f"| x | y |\n|---|---|\n| {cards._text(name)} | {cards._code(name)} |\n")
    assert [token.type for token in cells].count("td_open") == 2
