"""A page on which people look at what was removed: one file, from arrays, a `Summary` and the rows that it shows."""

from __future__ import annotations

from saft_hf.review.page import Reviewed, review_page

__all__ = ["Reviewed", "review_page"]
