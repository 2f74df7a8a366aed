"""What commands share: arguments -> rows and a fitted scorer -> what is saved, pushed and printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from saft_hf.cli.arguments import Arguments
from saft_hf.cli.data import labelled_of
from saft_hf.columns import Layout
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.hub import AUDIT, Destination, check_push
from saft_hf.named import NamedDataset
from saft_hf.result import RESULT, SCORER, FilterResult, check_folder, saving
from saft_hf.scorer import SAFTScorer
from saft_hf.scorer.options import BY_NAME, OPTIONS, Option, refuse_idle
from saft_hf.summary import Summary

_LOCAL = tuple(
    option.name
    for option in OPTIONS
    if option.in_shell and option.use == "scorer" and not (option.travels or option.learned)
)


@dataclass(frozen=True)
class Fitted:
    """What a command works on.

    Attributes:
        rows: where the pool comes from, pinned to a commit.
        pool: the rows to score.
        labelled: the rows that people labelled, where there are any.
        scorer: fitted on them, or loaded.
    """

    rows: NamedDataset
    pool: Dataset
    labelled: Dataset | None
    scorer: SAFTScorer


def load_and_fit(args: Arguments, *, read: Sequence[str] = (), keep_scores: bool = False) -> Fitted:
    """Load the rows, and load the scorer that is named or fit one.

    Args:
        args: of the command.
        read: options of a fit that the command reads itself, where a scorer is named or no row is labelled.
        keep_scores: whether a fit that can take no decision is of use to the command: it has scores all the same.

    Raises:
        SAFTUndecidedError: no decision can be taken, and the scores alone are of no use.
        SAFTInputError: no rows, or neither a scorer nor a model are named; or options contradict one another.
    """
    _refuse_idle(args, read)
    if args.scorer is None and args.model_name_or_path is None:
        raise SAFTInputError("`--model_name_or_path` (to fit a scorer) or `--scorer` (to use a fitted one) is needed.")
    rows = rows_of(args)
    pool = rows.load()
    labelled = labelled_of(
        pool,
        args.labelled_name,
        args.labelled_rows,
        seed=args.seed,
        label_column=args.label_column,
        split=rows.split,
        columns=rows.columns,
    )
    return Fitted(rows, pool, labelled, _scorer(args, pool, labelled, keep_scores=keep_scores))


def rows_of(args: Arguments) -> NamedDataset:
    """The rows that a command is about, pinned to a commit.

    Raises:
        SAFTInputError: none are named.
    """
    if args.dataset_name is None:
        raise SAFTInputError("`--dataset_name` is needed: a Hub id, a folder or a file.")
    where = args.dataset_train_split, args.dataset_config, args.dataset_revision, args.dataset_streaming
    return NamedDataset(args.dataset_name, *where, columns=columns_of(args)).pinned()


def columns_of(args: Any) -> Layout:
    """What columns of the rows, and of those that people labelled, are."""
    return Layout(args.prompt_column, args.response_column, args.parse_json)


def options_of(args: Arguments, use: str) -> dict[str, Any]:
    """The options of the scorer's constructor, of `fit` or of `filter`, where they are not their defaults."""
    given = {each.name: each.default for each in OPTIONS if each.in_shell and each.use == use}
    return {name: value for name, default in given.items() if (value := getattr(args, name)) != default}


def _refuse_idle(args: Arguments, read: Sequence[str]) -> None:
    """Refuse options that have no effect: beside a scorer, and without labels."""
    options = [option for option in OPTIONS if option.in_shell and option.use != "filter" and option.name not in read]
    if args.scorer is not None:
        of_rows = [Option(name, None, "") for name in ("model_revision", "labelled_name", "labelled_rows")]
        brought = [*(option for option in options if option.name not in _LOCAL), *of_rows]
        refuse_idle(partial(getattr, args), brought, "beside `--scorer`, which is fitted already", prefix="--")
    elif not (args.labelled_name or args.labelled_rows):
        why = "without `--labelled_rows` or `--labelled_name`"
        refuse_idle(partial(getattr, args), (option for option in options if option.of_labels), why, prefix="--")


def _scorer(args: Arguments, pool: Dataset, labelled: Dataset | None, *, keep_scores: bool) -> SAFTScorer:
    if args.scorer is None:
        model, options = args.model_name_or_path or "", options_of(args, "scorer")
        scorer = SAFTScorer(model, revision=args.model_revision, **options)
        told = options_of(args, "fit")
        if labelled is None:  # what is left of these is about other labels, which the command reads
            told = {name: value for name, value in told.items() if not BY_NAME[name].of_labels}
        try:
            scorer.fit(pool, labelled, **told)
        except SAFTUndecidedError:
            if not keep_scores:
                raise
        return scorer
    local = {name: getattr(args, name) for name in _LOCAL}
    scorer = SAFTScorer.from_pretrained(
        args.scorer, model=args.model_name_or_path, trust_labels=args.trust_labels, **local
    )
    if World().is_main:  # before it is loaded: a scorer from elsewhere names a model of its own
        print(f"The scorer in {args.scorer} reads the model {scorer.model}.")
    return scorer


def output_folder(args: Arguments, names: Sequence[str] = ()) -> Path:
    """The folder for results, made now: a run should not end with nowhere to write.

    Args:
        args: of the command.
        names: what the command will replace in it.

    Raises:
        SAFTInputError: none is named, the format is unknown, or the folder is somebody else's.
        OSError: it cannot be made or written.
    """
    if args.output_dir is None:
        raise SAFTInputError("`--output_dir` is needed: where the dataset, the audit and the scorer go.")
    folder = Path(args.output_dir)
    check_folder(folder, names, args.output_format, overwrite=args.overwrite or not names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_pushes(*repositories: Destination, removed: bool = False) -> None:
    """Refuse, before the work, pushes that would be refused after it. Collective."""

    def check() -> None:
        for to in repositories:
            check_push(to, removed=removed)

    if repositories:
        World().on_main("checking where to push", check)


def destinations(args: Arguments) -> list[Destination]:
    """Where a command pushes rows, and a scorer."""
    named = {"dataset": args.push_to_hub, "model": args.hub_scorer}
    return [
        Destination(repo_id, kind, args.hub_revision, private=args.hub_private, create_pr=args.hub_create_pr)
        for kind, repo_id in named.items()
        if repo_id is not None
    ]


def filter_and_save(args: Arguments) -> tuple[FilterResult, Fitted]:
    """Load, fit, filter, save and push: result (kept rows, audit, summary) and scorer.

    Raises:
        SAFTUndecidedError: no decision can be taken: scores, summary and scorer are saved, and no rows.
    """
    names = (*RESULT, SCORER)
    folder = output_folder(args, names)
    check_pushes(*destinations(args), removed=args.hub_include_removed)
    fitted = load_and_fit(args, read=("threshold", "on_undecided"), keep_scores=True)
    scorer, why = fitted.scorer, None
    options = {"threshold": args.threshold if args.scorer else None, **options_of(args, "filter")}
    try:
        result = scorer.filter(fitted.pool, on_undecided=args.on_undecided, **options)  # type: ignore[arg-type] # checked
    except SAFTUndecidedError as error:
        why, result = error, scorer.filter(fitted.pool, on_undecided="keep", **options)
        result.summary = replace(result.summary, undecided=result.summary.undecided or str(error))
    if args.demonstrations is not None:
        result.demonstrate(args.demonstrations, args.demonstrations_share)
    seed = args.seed if args.labelled_rows else None
    result.summary = replace(result.summary, **input_of(result.summary, fitted.rows, seed))

    def save() -> None:
        with saving(folder, names, args.output_format, overwrite=args.overwrite) as draft:
            if why is None:
                result.write(draft, args.output_format, save_removed=args.save_removed)  # type: ignore[arg-type] # checked
            else:
                result.write_scores(draft)
            scorer.save_pretrained(draft / SCORER)

    def push() -> None:
        push_scorer(scorer, args)
        result.summary = replace(result.summary, scorer_repo=args.hub_scorer)
        if args.push_to_hub:
            pushed = result.push_to_hub(
                args.push_to_hub,
                split=args.dataset_train_split,
                **_hub_options(args),
                include_indices=args.hub_include_indices,
                include_removed=args.hub_include_removed,
            )
            print(f"Pushed to {pushed.pr_url or pushed}.")

    World().on_main("saving", save)
    if why is not None:
        raise SAFTUndecidedError(
            f"{why} The scores are in {folder / AUDIT}, and `saft-hf review` shows them; no rows are written."
        )
    World().on_main("pushing", push)
    return result, fitted


def input_of(summary: Summary, rows: NamedDataset, seed: int | None) -> dict[str, Any]:
    """Fields of a summary: where its rows come from, and the seed of the labels that were drawn from them."""
    provenance = summary.provenance
    if provenance is not None:
        provenance = replace(provenance, input=rows.name, input_revision=rows.revision, seed=seed)
    return {"source": rows.source, "provenance": provenance}


def push_scorer(scorer: SAFTScorer, args: Arguments) -> None:
    """Push the scorer where that is asked for."""
    if args.hub_scorer is not None:
        print(f"Pushed the scorer to {scorer.push_to_hub(args.hub_scorer, **_hub_options(args))}.")


def _hub_options(args: Arguments) -> dict[str, Any]:
    """How to push, as `push_to_hub` of scorers and results takes it."""
    return {"private": args.hub_private, "revision": args.hub_revision, "create_pr": args.hub_create_pr}
