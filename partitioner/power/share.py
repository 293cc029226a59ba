"""This process's share of the processor's work: a counter of the machine counts others' too."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from outrider.partitioner.power.sysfs import Tree

STAT = "proc/stat"
WORK = (0, 1, 2, 5, 6)
"""user, nice, system, irq, softirq of the line `cpu`."""


def own_seconds() -> float:
    """Processor seconds of this process, all threads."""
    spent = os.times()
    return spent.user + spent.system


def ticks() -> float:
    return float(os.sysconf("SC_CLK_TCK")) if hasattr(os, "sysconf") else 100.0


@dataclass(slots=True)
class Share:
    tree: Tree = Tree()
    own: Callable[[], float] = own_seconds
    per_second: float = 100.0
    _last: tuple[float, float] | None = None

    def since_last(self) -> float:
        """0 to 1; 1 where the machine does not tell what all processes did."""
        whole = self._whole()
        if whole is None:
            return 1.0
        now, before = (self.own(), whole), self._last
        self._last = now
        if before is None or now[1] <= before[1]:
            return 1.0
        return min(1.0, max(0.0, (now[0] - before[0]) / (now[1] - before[1])))

    def _whole(self) -> float | None:
        fields = (self.tree.text(STAT) or "").partition("\n")[0].split()[1:]
        if len(fields) <= max(WORK) or not all(field.isdigit() for field in fields):
            return None
        return sum(int(fields[i]) for i in WORK) / self.per_second
