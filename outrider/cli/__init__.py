"""The command line: one function a verb; what a verb needs is imported when it runs."""

from outrider.cli.app import main

__all__ = ["main"]
