"""For the rows that `fit` saw, `filter` renders, plans and scores nothing again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from scorer_kit import Forwards

from saft_hf import SAFTScorer
from saft_hf.assets import reference_columns
from saft_hf.embed import extract
from saft_hf.render import Renderer


class Renders:
    """Counts rows that are rendered, the fixed rows of template digests aside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        render = Renderer.__call__

        def counted(renderer: Renderer, batch: Mapping[str, Any]) -> Any:
            if renderer.chat_template is None:
                self.rows += len(next(iter(batch.values())))
            return render(renderer, batch)

        monkeypatch.setattr(Renderer, "__call__", counted)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    plan = extract.make_plan
    monkeypatch.setattr(extract, "make_plan", lambda *args, **options: (made.append(1), plan(*args, **options))[1])
    return made


@pytest.mark.parametrize("method", ["saft", "auto"])
def test_fit_and_filter_render_a_row_once(
    demo_model: str,
    demo_pool: Dataset,
    demo_labelled: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plans: list[int],
    method: str,
) -> None:
    renders, forwards = Renders(monkeypatch), Forwards(monkeypatch)
    scorer = SAFTScorer(demo_model, method=method, cache_dir=tmp_path).fit(demo_pool, demo_labelled)
    # A few rows are rendered twice on purpose, to see that they come out the same.
    # The labels are compared with the built-in reference set.
    assert renders.rows <= 1.15 * len(demo_pool) + len(demo_labelled) + len(reference_columns()["prompt"])
    fitted = (renders.rows, forwards.count, len(plans))
    result = scorer.filter(demo_pool)
    scorer.score_dataset(demo_pool)
    scorer.suggest_labels(demo_pool, uniform=5)
    assert (renders.rows, forwards.count, len(plans)) == fitted
    assert len(result.kept) + len(result.removed) + len(result.errored) == len(demo_pool)


def test_the_same_rows_in_other_hands_are_known_and_other_rows_are_not(
    demo_model: str, demo_pool: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = demo_pool.select(range(100))
    scorer = SAFTScorer(demo_model, method="saft", k=1, contamination=0.1, cache_dir=tmp_path).fit(rows)
    expected = scorer.filter(rows)
    renders = Renders(monkeypatch)
    # Another chunking, another column that is not read, scores beside the rows.
    halves = concatenate_datasets([demo_pool.select(range(40)), demo_pool.select(range(40, 100))])
    same = halves.add_column("source", ["a"] * 100)
    assert np.array_equal(scorer.filter(same).scores, expected.scores)
    assert renders.rows == 0
    turned = rows.select(range(99, -1, -1))
    assert np.array_equal(scorer.filter(turned).scores, expected.scores[::-1])
    assert renders.rows >= 100
