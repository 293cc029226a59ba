"""`outrider demo`: two processes, one text, a link that breaks; on one machine, in a minute."""

from outrider.demo.main import DemoOptions, run

__all__ = ["DemoOptions", "run"]
