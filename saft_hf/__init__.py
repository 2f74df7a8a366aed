"""Keep harmful rows out of supervised fine-tuning, with the model's own hidden states."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from saft_hf.version import __version__ as __version__

if TYPE_CHECKING:
    from saft_hf.decide.certify import Certificate
    from saft_hf.errors import SAFTArtifactError, SAFTError, SAFTHubError, SAFTInputError, SAFTUndecidedError
    from saft_hf.render import RenderConfig
    from saft_hf.result import FilterResult
    from saft_hf.scorer import SAFTScorer
    from saft_hf.scorer.reference_rows import ReferenceSource
    from saft_hf.status import RowStatus
    from saft_hf.summary import Summary
    from saft_hf.train import SAFTSFTConfig, SAFTSFTTrainer

# Public name -> module that defines it. Loaded on first use, so that `import saft_hf` stays light.
_EXPORTS = {
    "Certificate": "saft_hf.decide.certify",
    "FilterResult": "saft_hf.result",
    "ReferenceSource": "saft_hf.scorer.reference_rows",
    "RenderConfig": "saft_hf.render",
    "RowStatus": "saft_hf.status",
    "SAFTArtifactError": "saft_hf.errors",
    "SAFTError": "saft_hf.errors",
    "SAFTHubError": "saft_hf.errors",
    "SAFTInputError": "saft_hf.errors",
    "SAFTSFTConfig": "saft_hf.train",
    "SAFTSFTTrainer": "saft_hf.train",
    "SAFTScorer": "saft_hf.scorer",
    "SAFTUndecidedError": "saft_hf.errors",
    "Summary": "saft_hf.summary",
}

__all__ = [
    "Certificate",
    "FilterResult",
    "ReferenceSource",
    "RenderConfig",
    "RowStatus",
    "SAFTArtifactError",
    "SAFTError",
    "SAFTHubError",
    "SAFTInputError",
    "SAFTSFTConfig",
    "SAFTSFTTrainer",
    "SAFTScorer",
    "SAFTUndecidedError",
    "Summary",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
