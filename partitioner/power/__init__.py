"""Power: what is drawn, what is left, what a request costs, and what follows from it."""
