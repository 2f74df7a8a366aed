"""The options of an evaluation and of an experiment."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saft_hf.demonstrations import BUILT_IN
from saft_hf.errors import SAFTInputError

ARMS = (
    *("untuned", "none", "random", "ask", "ask:answer", "labelled", "saft", "auto", "reference"),
    *("drift_low", "drift_high", "oracle"),
)
"""`untuned`: the model as it is. `none`: no filter. `random`: as many rows as `saft` keeps, drawn at random;
`random:ARM` as many as another arm. `ask`: a chat model is asked about each row, in the paper's words; `ask:answer`:
whether its answer is harmful. `labelled`: the rows whose label the filters see, as far as they are safe. `saft`: as
published. `auto`: our scores. `reference`: our scores without labels. `drift_low`, `drift_high`: the third whose
answers wear off refusals least and most, by `saft_drift`. `oracle`: the true labels; `oracle:ARM`: as many of its rows,
drawn at random, as another arm keeps."""
HARMLESS = "harmless"
"""The pool that holds nothing harmful, and the arms that can be told apart on it."""
_ON_HARMLESS = ("none", "drift_low", "drift_high")
_CHOOSES = "|".join(arm for arm in ARMS if arm not in ("untuned", "random"))
_ARM = re.compile(rf"untuned|random(:({_CHOOSES}))?|({_CHOOSES}|oracle:({_CHOOSES}))(\+(0?\.\d*[1-9]|1))?")


def _option(default: Any, help_text: str) -> Any:
    """A field as TrlParser reads it."""
    return field(default=default, metadata={"help": help_text})


@dataclass
class EvaluationConfig:
    """Which model, and what it is asked."""

    model_name_or_path: str | None = _option(None, "Hub id or folder of the model to tune.")
    model_revision: str | None = _option(None, "Commit, branch or tag of the model.")
    dtype: str = _option("auto", "Of the model; `auto` is the checkpoint's, float32 on CPU.")
    output_dir: str | None = _option(None, "Folder for the results and the report.")
    labelled_name: str | None = _option(None, "Rows with labels, such as BeaverTails: a Hub id, a folder or a file.")
    labelled_split: str = _option("train", "Split of `labelled_name`.")
    label_column: str | None = _option(None, "By default `is_safe`, `harmful` and so on.")
    harmful_value: str | None = _option(None, "The value that marks a harmful row.")
    benign_name: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Harmless instructions (labelled: those that are). The first is for `easy` pools and utility, all "
            "are for `mixed` pools."
        },
    )
    benign_split: str = _option("train", "Split of `benign_name`.")
    refusals_name: str | None = _option(None, "Safe refusals of harmful prompts.")
    harmful_prompts: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Sets of harmful prompts to ask beside those of `labelled_name`: Hub ids, folders or files, with "
            "options after commas: `walledai/HarmBench,config=standard`. Each is reported by itself."
        },
    )
    safe_prompts_name: str | None = _option(
        None, "Harmless prompts that sound harmful, such as XSTest's; labelled if need be."
    )
    safe_prompts_split: str = _option("train", "Split of `safe_prompts_name`.")
    split_seed: int = _option(0, "Of the split of prompts into pools, judge rows, questions.")
    judges: list[str] = field(
        default_factory=lambda: ["refusal", "trained"],
        metadata={
            "help": "`refusal`; `trained` on words and `probe` on the untuned model's states (both by the experiment, "
            "on rows outside of the pools); Hub ids."
        },
    )
    prompts: int = _option(200, "Held-out harmful prompts, and those of each set of `harmful_prompts`.")
    pairs: int = _option(200, "Pairs of a safe and an unsafe answer.")
    benign_rows: int = _option(200, "Harmless held-out rows, for utility.")
    safe_prompts: int = _option(250, "Prompts of `safe_prompts_name`.")
    max_new_tokens: int = _option(128, "Tokens of an answer, at most.")
    max_length: int = _option(1024, "Tokens of a row whose likelihood is taken, at most.")
    eval_batch_size: int = _option(16, "Rows at a time, when measuring.")
    bleurt: str | None = _option(None, "Folder of a BLEURT checkpoint.")
    keep_text: bool = _option(False, "Keep what the models said; some of it is harmful.")
    cache_dir: str | None = _option(None, "Where vectors are kept.")

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            SAFTInputError: an option is missing, or `bleurt` is not installed.
        """
        for name in ("model_name_or_path", "output_dir", "labelled_name", "benign_name"):
            if not getattr(self, name):
                raise SAFTInputError(f"`--{name}` is needed.")
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, str) and str(option.type).startswith("list"):
                raise SAFTInputError(f"`{option.name}` is a list: write [{value}], not {value}.")
        if self.bleurt is not None and find_spec("bleurt") is None:
            raise SAFTInputError(
                f"`bleurt`={self.bleurt}, but the package `bleurt` is not installed. Install it from "
                "github.com/google-research/bleurt, or leave the option out."
            )


@dataclass
class ExperimentConfig(EvaluationConfig):
    """The contamination experiment: which model, data, arms and seeds."""

    pools: list[str] = field(
        default_factory=lambda: ["hard", "easy"], metadata={"help": "`hard`, `easy`, `mixed`, `harmless`."}
    )
    shares: list[float] = field(default_factory=lambda: [0.1, 0.25], metadata={"help": "Harmful shares of the pools."})
    rows: int = _option(3000, "Rows of a pool.")
    demonstrations: float = _option(0.0, "Share of a pool that comes from `refusals_name`.")
    labelled_rows: int = _option(100, "Rows whose label the filters see.")
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Of pools, label draws, training."})
    arms: list[str] = field(
        default_factory=lambda: ["untuned", "none", "random", "saft", "auto", "oracle"],
        metadata={"help": f"{' '.join(ARMS)}; with demonstrations at a share of the kept rows: auto+0.03"},
    )
    demonstrations_from: str = _option(
        "built-in", "What arms with demonstrations mix in: `built-in`, or `refusals`: rows of `refusals_name`."
    )
    asked_model: str | None = _option(None, "Chat model of the arm `ask`.")
    layer: int | None = _option(None, "Of the arm `saft`; by default half of the layers.")
    training: dict[str, Any] = field(default_factory=dict, metadata={"help": "Options of SFTConfig, in YAML."})
    lora: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of LoraConfig, in YAML; without any, all weights are tuned."}
    )
    keep_models: str = _option("none", "Which tuned models to keep: `none`, `filtered` or `all`.")

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            SAFTInputError: an option is missing or has a value that it does not know, or matplotlib is not installed.
        """
        super().check()
        if find_spec("matplotlib") is None:
            raise SAFTInputError("the report has plots, which need matplotlib: `pip install 'saft-hf[plots]'`.")
        if wrong := [arm for arm in self.arms if not _ARM.fullmatch(arm)]:
            raise SAFTInputError(
                f"`arms` holds {wrong}; known are {list(ARMS)}, and all but `untuned` and `random` with demonstrations "
                "too, such as `auto+0.03`."
            )
        for arm in self.arms:
            if (like := same_size_as(arm)) is not None and like not in self.arms:
                raise SAFTInputError(f"the arm {arm!r} keeps as many rows as {like!r}: add that to `arms` too.")
        if self.asked_model is None and any(first_word(arm) == "ask" for arm in self.arms):
            raise SAFTInputError("the arm 'ask' needs `asked_model`, a chat model.")
        if wrong_shares := [share for share in self.shares if not 0 < share < 1]:
            raise SAFTInputError(f"`shares` must lie between 0 and 1, not {wrong_shares}.")
        if self.demonstrations_from not in (BUILT_IN, "refusals"):
            raise SAFTInputError(
                f"`demonstrations_from` must be 'built-in' or 'refusals', not {self.demonstrations_from!r}."
            )
        if (self.demonstrations or self.demonstrations_from == "refusals") and self.refusals_name is None:
            raise SAFTInputError("demonstrations need `refusals_name`: the rows that they come from.")
        if self.keep_models not in ("none", "filtered", "all"):
            raise SAFTInputError(f"`keep_models` must be 'none', 'filtered' or 'all', not {self.keep_models!r}.")

    @property
    def conditions(self) -> list[tuple[str, float]]:
        """Each pool and harmful share; the harmless pool has none."""
        found = [(pool, 0.0 if pool == HARMLESS else share) for share in self.shares for pool in self.pools]
        return list(dict.fromkeys(found))

    def arms_on(self, pool: str) -> list[str]:
        """The arms of a pool, those last whose size is another one's.

        On the harmless pool there is nothing to filter: these are `none`, both drifts, and random ones of their size.
        Drift is for that pool alone.
        """
        chosen = {arm: same_size_as(arm) or without_demonstrations(arm)[0] for arm in self.arms if arm != "untuned"}
        known = set(_ON_HARMLESS) if pool == HARMLESS else {*ARMS} - {*_ON_HARMLESS} | {"none"}
        return sorted((arm for arm, like in chosen.items() if like in known), key=lambda arm: bool(same_size_as(arm)))


def without_demonstrations(arm: str) -> tuple[str, float]:
    """The arm that chooses the rows, and the share of demonstrations that are mixed into them.

    Examples:
        >>> without_demonstrations("auto+0.03"), without_demonstrations("auto")
        (('auto', 0.03), ('auto', 0.0))
    """
    name, _, share = arm.partition("+")
    return name, float(share or 0)


def first_word(arm: str) -> str:
    """Of an arm's name: `random` of `random:auto`, `auto` of `auto+0.03`."""
    return re.split("[:+]", arm)[0]


def same_size_as(arm: str) -> str | None:
    """The arm whose size an arm has; None where it has one of its own.

    Examples:
        >>> same_size_as("random"), same_size_as("oracle:auto+0.03"), same_size_as("ask:answer")
        ('saft', 'auto', None)
    """
    name, _, other = without_demonstrations(arm)[0].partition(":")
    return {"random": other or "saft", "oracle": other or None}.get(name)


def digest(content: Any) -> str:
    """32 hex digits that name a JSON-ready value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def model_identity(name: str, revision: str | None) -> str:
    """What tells one model from another: name and revision on the Hub, a digest of all files of a local folder."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{revision}"
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model"):
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
