"""Keys and values leave the device plain, permuted and sealed: who holds them can read what?"""

import os

from outrider.engine import EngineSpec, Span
from outrider.engines import registry
from outrider.errors import SealBroken
from outrider.models.source import resolve
from outrider.privacy import chunked
from outrider.privacy.leak.meter import measure
from outrider.privacy.shield import shield_of

PROMPT = tuple(range(40, 60))
files = resolve("bundled:target")
engine = registry.build(EngineSpec("bundled:target", "torch", max_slots=2, threads=1))
slot = engine.open()
said = engine.extend([Span(slot, 0, PROMPT, len(PROMPT) - 1)])[0].ids
kv = engine.export_kv(slot, 0, len(PROMPT) - 1)

key = os.urandom(chunked.KEY)
sealed = chunked.seal(key, b"my answer, tokens 0 to 19", kv.data)
print(f"{len(kv.data)} bytes of keys and values, {len(sealed)} sealed")
try:
    chunked.open_all(key, b"another answer", sealed)
except SealBroken:
    print("under another name they do not open")
assert chunked.open_all(key, b"my answer, tokens 0 to 19", sealed) == kv.data

shield = shield_of(files, key)
again = engine.open()
engine.import_kv(again, shield.restore(shield.permute(kv)))
same = engine.extend([Span(again, len(PROMPT) - 1, PROMPT[-1:])])[0].ids == said
print(f"permuted and turned back, they go on with the same token: {same}")
engine.shutdown()

for one in measure(depths=(1,), texts=("my PIN is 4711",), most=3):
    print(f"{one.recovered:4.0%} of the text came back from {one.leaves}: {one.attack}")
