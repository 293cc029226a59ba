"""Before a pair is deployed: does the draft suit the target? Measured here, without a server."""

import sys

from outrider.engine import EngineSpec
from outrider.fit import measure

names = sys.argv[1:] or ["bundled:draft", "bundled:target"]
draft, target = (EngineSpec(model=name, numerics="plain", threads=1) for name in names)
found = measure(draft, target, tokens=16)

print(f"same vocabulary: {found.overlap.same_digest}")
for run in found.agreements:
    lengths = ", ".join(f"{length:.2f}" for length in run.acceptance_length.values())
    print(f"{run.kind:6} {run.sampling:7} {run.rate:.0%} accepted; tokens a pass {lengths}")
print(f"verdict: {found.verdict}")
print("\n".join(found.advice))
