"""Profiles: what a device, its engines and its links measure, and the cost model fitted to it."""
