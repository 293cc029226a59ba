"""Where should the layers of a model run? A phone, a laptop, a cloud, and when not to split."""

from dataclasses import replace

from outrider.errors import Unplannable
from outrider.models import graph
from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate
from outrider.partitioner.plan import Constraints, Problem, Workload
from outrider.partitioner.solve import choose


def device(name: str, memory: int, speed: float, watts: float) -> DeviceProfile:
    """Bytes per second, thirty operations per byte; `outrider profile` measures them."""
    rate = Rate("torch", "bfloat16", 30 * speed, speed, pass_s=1e-3)
    return DeviceProfile(name, "desktop", memory << 30, (rate,), busy_w=watts)


phone, laptop = device("phone", 6, 40e9, 4), device("laptop", 14, 90e9, 30)
cloud = device("cloud", 40, 800e9, 300)
links = (
    LinkProfile("phone", "laptop", 0.004, 50e6, 50e6),
    LinkProfile("phone", "cloud", 0.060, 2e6, 8e6),
    LinkProfile("laptop", "cloud", 0.040, 3e6, 12e6),
)
model = graph.read("shape:llama-3.1-8b")  # units 0 to 33: embedding, 32 layers, head
home = Problem(model, (phone, laptop, cloud), links, "phone", Workload(sequences=1))
asks = {
    "everything allowed": home,
    "the text must not leave": replace(home, constraints=Constraints(stay=(0, 33))),
    "no cloud": replace(home, constraints=Constraints(exclude=("cloud",))),
    "the phone alone": replace(home, devices=(phone,), links=()),
}
for name, problem in asks.items():
    try:
        plan = choose.solve(problem)
        spans = ", ".join(f"{s.device} {s.start}-{s.stop - 1}" for s in plan.stages)
        print(f"{name}: {1e3 * plan.value:.0f} ms a token on {spans}. {plan.reasons[0]}")
    except Unplannable as error:
        print(f"{name}: not possible. {error.todo}")
