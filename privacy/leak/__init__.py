"""How much of a text comes back from what leaves the device: attacks and a meter of them."""
