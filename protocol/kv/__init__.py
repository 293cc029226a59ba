"""The KV codec ladder: keys and values smaller, by as much as the link asks for.

`encode` and `decode` go between `KvSegment`s in canonical layout and self-describing objects;
`LADDER` has the rungs, `level` finds one by name. Which rung, and whether to ship at all, is
decided in `partitioner.ship`. numpy alone; the lossless stage needs zstandard.
"""

from outrider.protocol.kv.codec import LIMIT, Reader, decode, encode
from outrider.protocol.kv.level import LADDER, LOSSLESS, Level, level

__all__ = ["LADDER", "LIMIT", "LOSSLESS", "Level", "Reader", "decode", "encode", "level"]
