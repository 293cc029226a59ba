"""Solvers: pure functions from a `Problem` to a `Plan`. No I/O, no clock."""
