"""Engine adapters; each imports its library only when it is built."""
