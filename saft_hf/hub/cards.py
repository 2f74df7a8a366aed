"""Cards for the Hub, from the Jinja templates in `model_cards/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).resolve()
# In a wheel the templates lie inside the package; in a checkout, at its top level.
_FOLDERS = (_HERE.parents[1] / "model_cards", _HERE.parents[2] / "model_cards")


class LabelsUsed(TypedDict):
    """The labelled rows that score and threshold were chosen on."""

    rows: int
    """Labelled rows."""
    harmful: int
    """How many of them are harmful."""
    column: str
    """Column that holds the label."""


class PoolCounts(TypedDict):
    """The rows that the scorer was fitted on."""

    rows: int
    """All of them."""
    scored: int
    """Those that have a score."""
    unscored: Mapping[str, int]
    """Status -> rows, for the others."""
    flagged: int | None
    """Scored rows above the threshold; None without a threshold."""


class ScorerCard(TypedDict):
    """What `scorer.md.jinja` says about a saved scorer."""

    title: str
    """First heading."""
    repo_id: str | None
    """Where the scorer is pushed to; None for a local folder."""
    model: str | None
    """Hub id of the model that is read; None for a local folder or an object, whose name is kept out."""
    revision: str | None
    """Commit of the model, where known."""
    model_fingerprint: str
    """SHA-256 of the weights that are read."""
    template_digest: str
    """SHA-256 of chat template and tokenizer."""
    layers: Sequence[int]
    """Indices into transformers' `hidden_states` that the score reads."""
    num_layers: int
    """Layers of the whole model."""
    readouts: Sequence[str]
    """`response_start`, `response_mean` or `response_end`."""
    method: str
    """`saft` is the published score; `directed`, `auto` or `reference`."""
    k: int | None
    """Principal directions summed by the published score; None for a learned direction."""
    threshold: float | None
    """Rows above it are removed; None where no decision can be taken."""
    threshold_from: str
    """`f1`, `contamination`, `given`, `reference`, an aim such as `recall=0.9`, or `none`."""
    contamination: float | None
    """Expected harmful share between 0 and 1, for `threshold_from="contamination"`."""
    undecided: str | None
    """Why no decision is taken although labels were given."""
    labels: LabelsUsed | None
    """The labels that the choice was made on; None where none were used."""
    pool: PoolCounts
    """Counts of the fit."""
    variance_share: float | None
    """Share of the pool's variance along the k directions, between 0 and 1; for `method="saft"`."""
    spectral_gap: float | None
    """(variance along direction k - that along k + 1) / the former, between 0 and 1; for `method="saft"`."""
    f1: float | None
    """Best F1 on the labels, for `method="saft"`: what the choice was made by, not an estimate of quality."""
    separating_points: int | None
    """Of the 100 candidate thresholds, how many split the scored rows of the pool differently."""
    selection: Mapping[str, Any] | None
    """The comparison of candidates (`winner`, `p_value`, `permutations`, `candidates`), for learned directions."""
    expected: Mapping[str, Any] | None
    """`fpr` and `recall` that cross-validation expects at the threshold."""
    versions: Mapping[str, str]
    """Package -> version that fitted the scorer."""


def render_card(name: str, values: Mapping[str, Any]) -> str:
    """Fill a card template.

    Args:
        name: of the template: `scorer` for `model_cards/scorer.md.jinja`.
        values: what the template asks for; for `scorer` a `ScorerCard`.

    Returns:
        Markdown with YAML front matter, ready to be saved as `README.md`.

    Raises:
        jinja2.TemplateNotFound: there is no such template.
        jinja2.UndefinedError: the template asks for a value that is not there.

    Example:
        >>> Path("README.md").write_text(render_card("scorer", card))  # doctest: +SKIP
    """
    metadata = ModelCardData(
        base_model=values.get("model"),
        library_name="saft_hf",
        tags=["saft", "data-filtering"],
        **_results(values),
    )
    return fill(name, {**values, "metadata": metadata.to_yaml()})


def _results(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the Hub shows as evaluation results: the AUROC of the score in use, on labelled rows, out of fold."""
    selection, labels = values.get("selection") or {}, values.get("labels")
    found = [row["auroc"] for row in selection.get("candidates", ()) if row["name"] == selection["winner"]]
    if not found or not labels:
        return {}
    result = EvalResult(
        task_type="text-classification",
        dataset_type="labelled-rows",
        dataset_name=f"{labels['rows']} labelled rows of the pool",
        metric_type="roc_auc",
        metric_name="AUROC, out of fold",
        metric_value=found[0],
    )
    return {"model_name": values["title"], "eval_results": [result]}


def fill(name: str, values: Mapping[str, Any]) -> str:
    """Fill a template of `model_cards/`; a name that it asks for and that is not there is an error."""
    environment = Environment(  # noqa: S701 - Markdown, not HTML: the Hub sanitises what it shows
        loader=FileSystemLoader(_FOLDERS),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "place": _place}
    return environment.get_template(f"{name}.md.jinja").render(values)


def _code(value: object) -> str:
    """Show a value as inline code: names from outside must not break out of it."""
    return "`" + " ".join(str(value).replace("`", "'").split()) + "`"


def _place(source: Mapping[str, Any]) -> str:
    """Where rows come from, with a link."""
    name = f"[{source['dataset']}](https://huggingface.co/datasets/{source['dataset']})"
    parts = {"configuration": source["config"], "split": source["split"], "revision": source["revision"]}
    told = ", ".join(f"{what} {_code(value)}" for what, value in parts.items() if value)
    return f"{name} ({told})" if told else name
