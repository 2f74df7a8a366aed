"""The ways to score, by name. A new one is a file beside these and a line here."""

from __future__ import annotations

from saft_hf.scorer.methods.auto import Auto
from saft_hf.scorer.methods.base import FitSpec, Method, MethodFit
from saft_hf.scorer.methods.directed import Directed
from saft_hf.scorer.methods.reference import ReferenceSet
from saft_hf.scorer.methods.saft import Saft

METHODS: dict[str, Method] = {method.name: method for method in (Saft(), Directed(), Auto(), ReferenceSet())}

__all__ = ["METHODS", "FitSpec", "Method", "MethodFit"]
