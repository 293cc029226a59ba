"""NVIDIA GPUs by NVML; its bindings (extra `nvml`) are imported here alone.

The energy counter (millijoules, Volta and later) is preferred; older ones give milliwatts now.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from outrider.partitioner.power.reading import Absent, Draw, Heat, Reading, SensorError

LOOKED = "libnvidia-ml"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NvmlReader:
    library: Any
    """pynvml, initialised."""
    handles: tuple[Any, ...]
    name: str = "nvml"

    def read(self) -> Reading:
        draws = tuple(self._draw(i, handle) for i, handle in enumerate(self.handles))
        heats = [self._heat(i, handle) for i, handle in enumerate(self.handles)]
        return Reading(draws=draws, heats=tuple(heat for heat in heats if heat is not None))

    def _draw(self, number: int, handle: Any) -> Draw:
        lib = self.library
        source = f"nvml gpu{number}"
        joules = self._ask(lambda: lib.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
        if joules is not None:
            return Draw(source, "part", joules=joules, of="gpu")
        watts = self._ask(lambda: lib.nvmlDeviceGetPowerUsage(handle) / 1e3)
        if watts is None:
            raise SensorError(
                f"GPU {number} tells neither energy nor power",
                why="its driver does not support either",
                effect="the GPU is left out of the power readings",
            )
        return Draw(source, "part", watts=watts, of="gpu")

    def _heat(self, number: int, handle: Any) -> Heat | None:
        lib = self.library
        celsius = self._ask(
            lambda: float(lib.nvmlDeviceGetTemperature(handle, lib.NVML_TEMPERATURE_GPU))
        )
        limit = self._ask(
            lambda: float(
                lib.nvmlDeviceGetTemperatureThreshold(
                    handle, lib.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
                )
            )
        )
        return None if celsius is None else Heat(f"gpu{number}", celsius, limit)

    def _ask(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except self.library.NVMLError:
            return None


def find(load: Callable[[str], ModuleType] = importlib.import_module) -> NvmlReader | Absent:
    """The GPUs of this machine, when the bindings are installed and a driver answers."""
    try:
        library: Any = load("pynvml")
    except ImportError:
        why = 'its bindings are not installed (pip install "outrider[nvml]")'
        return Absent("nvml", LOOKED, why)
    try:
        library.nvmlInit()
        count = library.nvmlDeviceGetCount()
        handles = tuple(library.nvmlDeviceGetHandleByIndex(i) for i in range(count))
    except library.NVMLError as error:
        return Absent("nvml", LOOKED, f"no NVIDIA driver answers ({type(error).__name__})")
    return NvmlReader(library, handles) if handles else Absent("nvml", LOOKED, "no NVIDIA GPU")
