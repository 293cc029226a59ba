"""Outrider: a small model on the device drafts, the large model in the cloud decides."""

__version__ = "0.1.0"

__all__ = ["__version__"]
