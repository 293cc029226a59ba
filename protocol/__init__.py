"""What both sides share: messages, state table, sampling, events, wire codec."""
