"""A row of any shape that SFTTrainer takes -> token ids, response spans, status."""

from __future__ import annotations

from saft_hf.render.renderer import Renderer
from saft_hf.render.rendering import Readout, RenderConfig, Rendering

__all__ = ["Readout", "RenderConfig", "Renderer", "Rendering"]
