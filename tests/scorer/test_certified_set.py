"""The certified set: what the text counts, what `filter` keeps by it, from which rows its labels are drawn."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf import SAFTScorer
from saft_hf.decide import decide
from saft_hf.decide.certify import FreshLabels
from saft_hf.decide.labelling import Drawn, Purpose
from saft_hf.errors import SAFTInputError
from saft_hf.scorer import certifying
from saft_hf.scorer.labels import LabelledRows, Suggested


@pytest.fixture(scope="module")
def shuffled(demo_pool: Dataset) -> Dataset:
    """The first 100 rows are those that `scorer` was fitted on."""
    return demo_pool.shuffle(seed=0)


def with_truth(suggested: Dataset, pool: Dataset) -> Dataset:
    truth = [not pool["is_safe"][row] for row in suggested["saft_row"]]
    return suggested.remove_columns("is_harmful").add_column("is_harmful", truth)


# -- the four lines --------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_the_text_begins_with_counts_that_add_up_to_the_filters(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = data.draw(st.integers(20, 120))
    scores = rng.normal(size=size).astype(np.float32)
    scores[rng.random(size) < data.draw(st.sampled_from([0, 0.2]))] = np.nan
    scores[0] = -9
    statuses = ["truncated" if np.isnan(score) else "ok" for score in scores]
    identities = np.zeros((size, 16), dtype=np.uint8)
    identities.view("<u4")[:, 0] = np.arange(size)
    # Row 0 stays open, so that there is always one to certify.
    fitted, near, rest = np.split(1 + rng.permutation(size - 1), sorted(rng.integers(0, size - 1, 2)))
    rows = np.concatenate([rest[: data.draw(st.integers(0, 40))], near])
    informative = np.isin(rows, near)
    truth = rng.random(size) < 0.2
    fit = SimpleNamespace(
        labelled=LabelledRows.of(identities[fitted], truth[fitted]), threshold=0.3, threshold_from="given"
    )
    labels_decide, on_error = data.draw(st.booleans()), data.draw(st.sampled_from(["keep", "exclude"]))
    by_label = fit.labelled.among(identities) if labels_decide else {}
    filtered = decide(scores, statuses, 0.3, on_error=on_error, labels=by_label)
    found = certifying.certify(
        fit,  # type: ignore[arg-type]
        scores,
        identities,
        identities[rows],
        Suggested(~informative, truth[rows[~informative]], informative, 0, None),
        None,
        alpha=0.4,
        delta=0.3,
        looks=1,
        stratify_by=None,
        threshold=None,
        keep_errored=on_error == "keep",
        decided=lambda at: decide(scores, statuses, at, on_error=on_error, labels=by_label),
    )
    reasons = filtered.reason_counts()
    texts = [(found, 0.3, filtered)]
    if found.issued:
        at = found.threshold
        certified = decide(scores, statuses, at, on_error=on_error, labels=by_label)
        texts.append((found.used(certified), at, certified))
    for certificate, at, decisions in texts:
        lines = certificate.says().splitlines()[:4]
        reasons = decisions.reason_counts()
        total, by_score, by_label_, errored = (
            [int(number) for number in re.findall(r"\b\d+\b", line.replace(f"threshold {at:.6g}", ""))]
            for line in lines
        )
        kept, removed, bad, everything = total
        assert (kept, removed, bad) == tuple(decisions.counts().values())
        assert kept + removed + bad == everything == size
        assert by_score[0] == reasons["kept"].get("score", 0)
        assert by_label_ == [reasons["kept"].get("label", 0)]
        assert by_score[0] + by_label_[0] == kept
        assert errored == [bad]
        assert ("trained on too" in lines[3]) == (on_error == "keep")
        # The statement is about the rows kept by score that no label was used of before.
        known = np.union1d(fitted, near)
        counted = np.setdiff1d(np.flatnonzero(scores <= at), known).size
        assert certificate.rows is not None
        assert certificate.rows.counted == counted
        aside = re.search(r"Not about the (\d+) row", lines[1])
        assert by_score[0] == counted + (int(aside[1]) if aside else 0)
        if certificate.in_use or certificate is not found:
            assert f"{counted} row" in lines[1]


def test_the_counts_are_those_of_the_filter(scorer: SAFTScorer, shuffled: Dataset) -> None:
    broken = shuffled.select([200, 201, 202]).map(lambda row: {"messages": row["messages"][:-1]})
    pool = concatenate_datasets([shuffled, broken])
    fresh = with_truth(scorer.suggest_labels(pool, uniform=120, informative=20), pool)
    for on_error in ("exclude", "keep"):
        found = scorer.certify(pool, fresh, alpha=0.25, on_error=on_error)
        for rows, result in (
            (found.rows, scorer.filter(pool, on_error=on_error)),
            (None, scorer.filter(pool, certificate=found, on_error=on_error)),
        ):
            told = result.summary
            if rows is None:
                assert told.certificate is not None
                assert told.certificate.text.startswith(f"Set in use: {told.kept} rows kept at threshold ")
                rows = found.used(result.decisions).rows
            assert (rows.by_score + rows.by_label, rows.removed, rows.errored) == (
                told.kept,
                told.removed,
                told.errored,
            )
            assert rows.by_score == told.reasons["kept"]["score"]
            assert rows.errored_kept == (len(result.train_rows()) == told.kept + told.errored > told.kept)


# -- what is kept by it ------------------------------------------------------------------------------------------------


def test_the_certified_set_is_kept_by_filter_and_by_a_scorer_that_is_saved(
    scorer: SAFTScorer, shuffled: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    fresh = with_truth(scorer.suggest_labels(shuffled, uniform=200), shuffled)
    certificate = scorer.certify(shuffled, fresh, alpha=0.2)
    assert certificate.issued
    before = scorer.threshold_
    result = scorer.filter(shuffled, certificate=certificate)
    scores = np.array(scorer.score_dataset(shuffled)["saft_score"])
    assert result.kept_indices.tolist() == np.flatnonzero(scores <= certificate.threshold).tolist()
    told = result.summary
    assert (told.threshold, told.threshold_from, told.filtered) == (certificate.threshold, "certificate", True)
    assert told.certificate is not None
    assert (told.certificate.trained_on, told.certificate.kept) == (True, certificate.kept)
    copied = scorer.certified(certificate)
    assert scorer.threshold_ == before != copied.threshold_
    copied.save_pretrained(tmp_path / "scorer")
    loaded = SAFTScorer.from_pretrained(tmp_path / "scorer", cache_dir=store_dir)
    assert loaded.filter(shuffled).kept_indices.tolist() == result.kept_indices.tolist()
    assert "what it keeps of others is not certified" in (tmp_path / "scorer" / "README.md").read_text()
    # Labels chose that threshold: nothing is bounded at it as if they had not.
    again = loaded.certify(shuffled, fresh, alpha=0.2)
    assert (again.in_use, again.shares, again.threshold) == (None, None, certificate.threshold)


def test_a_certificate_is_refused_for_what_it_says_nothing_about(scorer: SAFTScorer, shuffled: Dataset) -> None:
    fresh = with_truth(scorer.suggest_labels(shuffled, uniform=200), shuffled)
    certificate = scorer.certify(shuffled, fresh, alpha=0.2)
    with pytest.raises(SAFTInputError, match="about other rows than these"):
        scorer.filter(shuffled.select(range(300)), certificate=certificate)
    other = copy(scorer)
    subspace = scorer.fit_.score.subspace
    moved = replace(scorer.fit_.score, subspace=replace(subspace, mean=subspace.mean * 1.01))
    other.fit_ = replace(scorer.fit_, score=moved)
    with pytest.raises(SAFTInputError, match="or about other scores"):  # where its threshold means another set
        other.filter(shuffled, certificate=certificate)
    with pytest.raises(SAFTInputError, match="decides alone"):
        scorer.filter(shuffled, certificate=certificate, threshold=1.0)
    broken = shuffled.select([200]).map(lambda row: {"messages": row["messages"][:-1]})
    pool = concatenate_datasets([shuffled, broken])
    with pytest.raises(SAFTInputError, match="certify with on_error='keep' too"):
        scorer.filter(pool, certificate=scorer.certify(pool, fresh, alpha=0.2), on_error="keep")
    nothing = scorer.certify(shuffled, fresh, alpha=0.0001)
    for use in (lambda: scorer.filter(shuffled, certificate=nothing), lambda: scorer.certified(nothing)):
        with pytest.raises(SAFTInputError, match="nothing is certified"):
            use()


# -- labels of the kept part ---------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_how_rows_were_drawn_is_read_as_it_was_written(threshold: float) -> None:
    for drawn in (Drawn(Purpose.UNIFORM, threshold), Drawn(Purpose.UNIFORM), Drawn(Purpose.INFORMATIVE)):
        assert Drawn.parse(str(drawn)) == drawn


@pytest.mark.parametrize("text", ["", "uniform up to", "uniform up to nan", "informative up to 1.0", "uniform up to 1"])
def test_other_words_are_no_way_to_draw(text: str) -> None:
    with pytest.raises(ValueError, match=r"uniform|informative|''|nan"):
        Drawn.parse(text)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_labels_of_the_kept_part_certify_exactly_that(
    kind: str, scorer: SAFTScorer, shuffled: Dataset, tmp_path: Path
) -> None:
    pool = Dataset.from_dict(
        {
            "prompt": [messages[-2]["content"] for messages in shuffled["messages"]],
            "completion": [messages[-1]["content"] for messages in shuffled["messages"]],
            "is_safe": shuffled["is_safe"],
        }
    )
    suggested = with_truth(scorer.suggest_labels(pool, uniform=80, informative=10, kept_only=True), pool)
    getattr(suggested, f"to_{kind}")(str(tmp_path / "labels"))
    fresh = load_dataset(kind, data_files=str(tmp_path / "labels"), split="train", cache_dir=str(tmp_path / "cache"))
    scores = np.array(scorer.score_dataset(pool)["saft_score"], dtype=np.float64)
    uniform = np.array([purpose.startswith("uniform") for purpose in fresh["saft_purpose"]])
    rows = np.array(fresh["saft_row"])
    assert (scores[rows[uniform]] <= scorer.threshold_).all()
    found = scorer.certify(pool, fresh, alpha=0.2)
    used = np.union1d(scorer.fit_.labelled.used(scorer._scored.survey.identities), rows[~uniform])
    outside = np.union1d(used, np.flatnonzero(scores > scorer.threshold_))
    harmful = ~np.array(pool["is_safe"])
    own = FreshLabels.of(scores, rows[uniform], harmful[rows[uniform]], outside)
    expected = own.certify(alpha=0.2, threshold=scorer.threshold_)
    assert found.steps == expected.steps
    assert (
        [step.kept for step in found.steps]
        == [found.population]
        == [(scores <= scorer.threshold_).sum() - (scores[used] <= scorer.threshold_).sum()]
    )
    assert (found.drawn_from, found.shares, found.informative) == (scorer.threshold_, None, 10)
    assert found.in_use == own.bound(scorer.threshold_)
    assert "drawn from the rows kept at threshold" in found.says()
    with pytest.raises(SAFTInputError, match=r"the threshold in use is 99\.0: .* Certify with `threshold="):
        scorer.certify(pool, fresh, alpha=0.2, threshold=99.0)
    other = copy(scorer)
    other.fit_ = replace(scorer.fit_, threshold=float(np.quantile(scores, 0.5)))
    with pytest.raises(SAFTInputError, match="they tell of no other set"):
        other.certify(pool, fresh, alpha=0.2)
    assert other.certify(pool, fresh, alpha=0.2, threshold=scorer.threshold_).steps == found.steps
    mixed = concatenate_datasets([suggested, with_truth(scorer.suggest_labels(pool, uniform=50, seed=9), pool)])
    with pytest.raises(SAFTInputError, match="drawn in 2 ways"):
        scorer.certify(pool, mixed, alpha=0.2)
    # The scores are not those that they were drawn by.
    high = pool.select([int(np.nanargmax(scores))]).add_column("saft_purpose", fresh["saft_purpose"][:1])
    if uniform[0]:
        with pytest.raises(SAFTInputError, match="have a score above it"):
            scorer.certify(pool, high.add_column("is_harmful", [True]).remove_columns("is_safe"), alpha=0.2)


def test_a_given_cut_is_drawn_below_and_certified(scorer: SAFTScorer, shuffled: Dataset) -> None:
    scores = np.array(scorer.score_dataset(shuffled)["saft_score"], dtype=np.float64)
    cut = float(np.quantile(scores, 0.4))
    fresh = with_truth(scorer.suggest_labels(shuffled, uniform=80, kept_only=True, threshold=cut), shuffled)
    assert (scores[fresh["saft_row"]] <= cut).all()
    found = scorer.certify(shuffled, fresh, alpha=0.2, threshold=cut)
    assert (len(found.steps), found.steps[0].threshold) == (1, cut)
    assert found.rows is not None
    assert found.rows.threshold == cut
    with pytest.raises(SAFTInputError, match="for `kept_only` or `informative`"):
        scorer.suggest_labels(shuffled, uniform=5, threshold=cut)
    with pytest.raises(SAFTInputError, match="and are kept at the threshold: ask for fewer"):
        scorer.suggest_labels(shuffled, uniform=300, kept_only=True, threshold=cut)
    undecided = copy(scorer)
    undecided.fit_ = replace(scorer.fit_, threshold=None)
    with pytest.raises(SAFTInputError, match="fit one, or give `threshold`"):
        undecided.suggest_labels(shuffled, uniform=5, kept_only=True)


# -- an alpha for each stratum, and looks ------------------------------------------------------------------------------


def test_each_stratum_has_its_certificate_and_the_union_is_kept(
    scorer: SAFTScorer, shuffled: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    kinds = ["long" if len(messages) > 2 else "short" for messages in shuffled["messages"]]
    pool = shuffled.add_column("kind", kinds)
    fresh = with_truth(scorer.suggest_labels(pool, uniform=300), pool)
    shares = {"long": 0.3, "short": 0.2}
    found = scorer.certify(pool, fresh, alpha=shares, stratify_by="kind")
    scores = np.array(scorer.score_dataset(pool)["saft_score"], dtype=np.float64)
    used = scorer.fit_.labelled.used(scorer._scored.survey.identities)
    rows, inside = np.array(fresh["saft_row"]), np.array(kinds)
    truth, union = ~np.array(pool["is_safe"]), np.zeros(len(pool), bool)
    for kind, share in shares.items():
        own = rows[inside[rows] == kind]
        part = FreshLabels.of(scores, own, truth[own], np.union1d(used, np.flatnonzero(inside != kind)))
        assert found.parts[kind] == part.certify(alpha=share, delta=0.05)
        if found.parts[kind].issued:
            union |= (inside == kind) & (scores <= found.parts[kind].threshold)
    assert found.issued
    result = scorer.filter(pool, certificate=found)
    assert result.kept_indices.tolist() == np.flatnonzero(union).tolist()
    assert (result.summary.threshold, result.summary.filtered) == (None, True)
    assert result.summary.certificate.text.splitlines()[0].startswith(f"Set in use: {union.sum()} rows kept at thresh")
    scorer.certified(found).save_pretrained(tmp_path / "scorer")
    loaded = SAFTScorer.from_pretrained(tmp_path / "scorer", cache_dir=store_dir)
    assert loaded.filter(pool).kept_indices.tolist() == result.kept_indices.tolist()
    with pytest.raises(SAFTInputError, match="'kind' is no column of `dataset`"):
        loaded.filter(shuffled)
    with pytest.raises(SAFTInputError, match="about other rows than these"):  # other strata
        scorer.filter(shuffled.add_column("kind", kinds[::-1]), certificate=found)
    odd = shuffled.add_column("kind", ["new"] * len(shuffled))
    with pytest.raises(SAFTInputError, match=r"have no threshold \(new\)"):
        loaded.filter(odd)


def test_a_stratum_that_nothing_is_certified_of_is_not_kept(scorer: SAFTScorer, shuffled: Dataset) -> None:
    kinds = ["long" if len(messages) > 2 else "short" for messages in shuffled["messages"]]
    pool = shuffled.add_column("kind", kinds)
    fresh = with_truth(scorer.suggest_labels(pool, uniform=300), pool)
    found = scorer.certify(pool, fresh, alpha={"long": 0.0001, "short": 0.3}, stratify_by="kind")
    assert (found.parts["long"].issued, found.parts["short"].issued) == (False, True)
    kept = scorer.filter(pool, certificate=found).kept
    assert set(kept["kind"]) == {"short"}
    assert "'long': nothing certified, so none of it is kept" in found.says()
    assert found.alpha <= 0.3
    for shares, column, message in (
        ({"long": 0.1}, "kind", "must have a share for each value of column 'kind'"),
        ({"long": 0.1, "short": 0.1, "x": 0.1}, "kind", "must have a share for each value"),
        ({"long": 0.1, "short": 0.1}, None, "`stratify_by=`"),
        ({"long": 0.1, "short": 2.0}, "kind", "alpha of 'short' must be between 0 and 1"),
    ):
        with pytest.raises(SAFTInputError, match=message):
            scorer.certify(pool, fresh, alpha=shares, stratify_by=column)


def test_a_stratum_without_a_row_to_certify_stops_nothing(scorer: SAFTScorer, shuffled: Dataset) -> None:
    broken = shuffled.select(range(200, 260)).map(lambda row: {"messages": row["messages"][:1]})
    pool = concatenate_datasets([shuffled, broken.select([0, 1, 2])]).add_column("kind", ["whole"] * 600 + ["bad"] * 3)
    fresh = with_truth(scorer.suggest_labels(pool, uniform=200), pool)
    found = scorer.certify(pool, fresh, alpha={"bad": 0.1, "whole": 0.2}, stratify_by="kind", looks=2)
    assert (found.parts["bad"].issued, found.parts["bad"].population) == (False, 0)
    assert found.parts["whole"].level == 0.1 / 2 / 2
    assert set(scorer.filter(pool, certificate=found).kept["kind"]) == {"whole"}
    keeping = scorer.certify(pool, fresh, alpha={"bad": 0.1, "whole": 0.2}, stratify_by="kind", on_error="keep")
    certified = keeping.parts["whole"].certified
    assert certified is not None
    # The rows without a score are trained on, and are no part of the stratum that is certified.
    assert keeping.alpha == pytest.approx((certified.limit + 3) / (certified.kept + 3))


def test_another_look_at_labels_that_grew_says_so_unless_it_was_announced(
    scorer: SAFTScorer, shuffled: Dataset
) -> None:
    fresh = with_truth(scorer.suggest_labels(shuffled, uniform=160), shuffled)
    looking = copy(scorer)
    first = looking.certify(shuffled, fresh.select(range(80)), alpha=0.05)
    assert (first.look, first.issued) == (None, False)
    assert "For another look draw all of them anew" in first.says()
    assert looking.certify(shuffled, fresh.select(range(80)), alpha=0.2).look is None  # the same labels
    issued = looking.certify(shuffled, fresh.select(range(80)), alpha=0.25)
    assert issued.issued
    assert "which are looked at once (adding to them and certifying again multiplies" in issued.says()
    grown: Any = looking.certify(shuffled, fresh, alpha=0.2)
    assert grown.look == grown.summary().look == 2
    assert (
        "this is look 2 at least, and 1 was announced. The chance that any is issued and false is up to 0.2, not 0.1"
        in (grown.says())
    )
    announced = looking.certify(shuffled, fresh, alpha=0.2, looks=3)
    assert (announced.looks, announced.summary().looks, announced.level) == (3, 3, 0.1 / 3)
    assert "3 looks were announced beforehand" in announced.says()
    assert "This is look 2 at least." in announced.says()
    assert announced.kept <= grown.kept
    # A copy knows what was looked at, and what it looks at later is its own.
    assert copy(looking).certify(shuffled, fresh, alpha=0.2).look == 2
    assert looking.certified(issued).certify(shuffled, fresh, alpha=0.2).look == 2
    assert len(copy(looking)._looks) == len(looking._looks) > len(scorer._looks)
    with pytest.raises(SAFTInputError, match="looks must be a whole number"):
        looking.certify(shuffled, fresh, alpha=0.2, looks=0)
