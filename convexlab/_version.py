"""The version, here alone: the build reads it from this file, and code may import it without importing the package."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
