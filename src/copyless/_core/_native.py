"""The name that pickles of plain arrays call (plain.h)."""

from __future__ import annotations

from copyless._core._handles import array_over

__all__ = ["array_over"]
