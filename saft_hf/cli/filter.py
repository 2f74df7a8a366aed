"""`saft-hf filter`: keep the rows whose score is not above the threshold."""

from __future__ import annotations

from collections.abc import Sequence

from saft_hf.cli.arguments import parse
from saft_hf.cli.data import load_pool_and_labels
from saft_hf.cli.pipeline import SCORER, fit_lines, fitted_scorer, output_folder, print_table
from saft_hf.embed.world import World


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, filter, save kept rows, audit, summary and scorer."""
    arguments = parse("filter", argv)
    _, dataset, options, output = arguments
    folder = output_folder(output)
    world = World()
    pool, labelled = load_pool_and_labels(dataset)
    scorer = fitted_scorer(arguments, pool, labelled)
    result = scorer.filter(pool, on_error=options.on_error)  # type: ignore[arg-type] # filter says what it takes
    with world.together("saving"):
        if not world.is_main:
            return
        result.save(folder, file_format=output.output_format)  # type: ignore[arg-type]
        scorer.save_pretrained(folder / SCORER)
        print_table(
            {
                **fit_lines(scorer),
                "kept": len(result.kept_indices),
                "removed": len(result.removed_indices),
                "errored": len(result.errored_indices),
                "files": folder,
            }
        )
