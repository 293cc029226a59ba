"""The simulator: many devices on the cost model and the policies of the runtime."""
