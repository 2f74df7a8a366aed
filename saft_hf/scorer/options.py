"""Every option of a scorer in one ordered table, which copies, saved scorers, the shell and the trainer follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from saft_hf.errors import SAFTInputError

Use = Literal["scorer", "fit", "filter"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: the argument's name; `--name` in the shell, `saft_name` in `SAFTSFTConfig`.
        default: its default, the same everywhere.
        help: a line for people.
        use: `scorer`: an argument of the constructor; `fit` or `filter`: of that method.
        travels: whether it belongs to the scorer and goes into a saved one. The others belong to this machine or its
            user: they go to other processes, and never into a file.
        in_shell: whether the shell has it as a flag.
        in_trainer: whether `SAFTSFTConfig` has it as a field; the trainer takes the others from its own arguments.
        of_labels: whether it says how labels are read, and nothing else.
        learned: whether a fit learns from it: it does not travel, and a fitted scorer has no use for it.
    """

    name: str
    default: Any
    help: str
    use: Use = "scorer"
    travels: bool = True
    in_shell: bool = True
    in_trainer: bool = True
    of_labels: bool = False
    learned: bool = False


OPTIONS = (
    Option("revision", None, "Commit, branch or tag of the model.", in_shell=False, in_trainer=False),
    Option("layer", None, "Index into `hidden_states`; by default what the method reads."),
    Option("readout", None, "`response_start` (published), `response_mean` or `response_end`."),
    Option("method", None, "`saft` (published), `directed`, `auto` (the default with labels), `reference` (without)."),
    Option("k", None, "Directions to sum; by default chosen from 1 to 4 on the labels."),
    Option("threshold", None, "Remove rows with a score above it."),
    Option("contamination", None, "Remove this share of the rows, the highest scores."),
    Option("reference", None, "Labelled rows of other sources: `NAME,split=...`.", travels=False, learned=True),
    Option(
        "dtype",
        "auto",
        "`auto` (the checkpoint's; float32 on CPU), `bfloat16`, `float16`, `float32`.",
        in_trainer=False,
    ),
    Option("attn_implementation", None, "As in transformers.", in_trainer=False),
    Option("quantization_config", None, "As in transformers.", travels=False, in_shell=False, in_trainer=False),
    Option("device_map", None, "As in transformers.", travels=False, in_shell=False, in_trainer=False),
    Option("vector_dtype", "float32", "Of the vectors that are kept; `float16` halves the store.", in_trainer=False),
    Option("max_length", 1024, "Rows are cut to this many tokens, as SFTTrainer would.", in_trainer=False),
    Option(
        "cache_dir", None, "Where hidden states are kept; by default `saft` in the Hugging Face home.", travels=False
    ),
    Option("trust_remote_code", False, "Run code that comes with the model.", travels=False, in_trainer=False),
    Option("token", None, "For private models.", travels=False, in_shell=False, in_trainer=False),
    Option("processing_class", None, "Tokenizer or processor.", travels=False, in_shell=False, in_trainer=False),
    Option("render", None, "How rows become tokens.", in_shell=False, in_trainer=False),
    Option("formatting_func", None, "Row -> text.", travels=False, in_shell=False, in_trainer=False),
    Option(
        "label_column",
        None,
        "By default `is_safe`, `safe`, `is_harmful`, `harmful` or `unsafe`.",
        use="fit",
        of_labels=True,
    ),
    Option(
        "harmful_value",
        None,
        "The value that marks a harmful row, where the column's name does not say.",
        use="fit",
        of_labels=True,
    ),
    Option(
        "label_sampling",
        "uniform",
        "`uniform`: labelled rows were drawn at random from the rows; or `other`.",
        use="fit",
        of_labels=True,
    ),
    Option(
        "aim",
        None,
        "Of the threshold: `fpr=0.05` (on average), `fpr=0.05@0.9` (so sure), `recall=0.9`, `share=0.1`, `f1`.",
        use="fit",
    ),
    Option("fit_rows", None, "Fit on the first so many rows only.", use="fit"),
    Option("on_undecided", None, "Where no row can honestly be told harmful: `raise`, or `keep` every row.", use="fit"),
    Option("on_error", "exclude", "Rows without a score: `exclude` them, `keep` them, or `raise`.", use="filter"),
    Option(
        "refusal_column",
        None,
        "Booleans that say which rows are safe refusals, to see their loss.",
        use="filter",
        in_trainer=False,
    ),
    Option("certificate", None, "Whose set is kept.", "filter", travels=False, in_shell=False, in_trainer=False),
    Option("marks", None, "File of marks that a review saved: they decide their rows.", "filter", in_trainer=False),
    Option("by", None, "Column, such as a source: see what the rows with each value lose.", use="filter"),
)
"""The options, in the order in which signatures and help texts give them."""

BY_NAME = {option.name: option for option in OPTIONS}
TRAVELLING = tuple(option.name for option in OPTIONS if option.use == "scorer" and option.travels)
LOCAL = tuple(option.name for option in OPTIONS if option.use == "scorer" and not option.travels)


def refuse_idle(given: Callable[[str], Any], options: Iterable[Option], why: str, *, prefix: str = "") -> None:
    """Refuse options that would do nothing, where they are not their defaults.

    Args:
        given: name of an option -> its value.
        options: those that nothing reads.
        why: what the message says of them.
        prefix: what users write before the names.

    Raises:
        SAFTInputError: one of them was given.
    """
    if idle := [f"`{prefix}{option.name}`" for option in options if given(option.name) != option.default]:
        raise SAFTInputError(f"{', '.join(idle)}: without effect {why}.")
