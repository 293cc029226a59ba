"""What the messages of a session weigh on the wire, and what a link makes of it. Pure.

Messages of a size class do not depend on what they hold (SPEC.md), so their bytes are known
before they are sent; a test holds these against the codec. Bytes are those that TCP carries.
"""

from __future__ import annotations

from outrider.partitioner.signals import PeerSignals

FRAME = 14
"""Around each message: gRPC's prefix of 5 bytes, the head of an HTTP/2 frame of 9."""
HINT_BYTES = 48 + FRAME
"""A hint or an acknowledgement, of the smallest class."""
COMMIT_BYTES = 53 + FRAME
"""Up to eight tokens, without logprobs."""
ID_BYTES = 4
OPEN_BYTES = 256
"""Of an open beside its prompt: names, digests, parameters, the head of its stream."""
LEAST_OPEN = 1024


def open_bytes(tokens: int) -> int:
    """An open of so many tokens of prompt and answer; it is padded to a power of two."""
    bare = OPEN_BYTES + ID_BYTES * tokens
    return int(max(LEAST_OPEN, 1 << (bare - 1).bit_length())) + FRAME


def sent_ms(size: float, bytes_per_s: float | None) -> float:
    """How long a way is taken by so many bytes; 0 where its bandwidth is not known."""
    return 0.0 if bytes_per_s is None else 1e3 * size / bytes_per_s


def hint_ms(peer: PeerSignals) -> float:
    return sent_ms(HINT_BYTES, peer.up_bytes_per_s)


def commit_ms(peer: PeerSignals) -> float:
    return sent_ms(COMMIT_BYTES, peer.down_bytes_per_s)


def upload_ms(peer: PeerSignals, tokens: int) -> float:
    """Opening an answer there."""
    return sent_ms(open_bytes(tokens), peer.up_bytes_per_s)


def stall_ms(peer: PeerSignals, segments: int) -> float:
    """Expected wait for a retransmission among so many segments that something waits for."""
    if not peer.loss:
        return 0.0
    return (1.0 - (1.0 - peer.loss) ** segments) * ((peer.rtt_ms or 0.0) + peer.stall_ms)
