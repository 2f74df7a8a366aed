"""A row of any shape that SFTTrainer takes -> token ids, response spans, status."""

from __future__ import annotations

from saft_hf.render.batches import Columns, Rows
from saft_hf.render.readouts import END, MEAN, READOUTS, START, Readout
from saft_hf.render.renderer import Renderer
from saft_hf.render.rendering import RenderConfig, Rendering

__all__ = ["END", "MEAN", "READOUTS", "START", "Columns", "Readout", "RenderConfig", "Renderer", "Rendering", "Rows"]
