"""A model over several devices: stages in a row, the wire between, the engine they make."""
