"""`outrider top`: what device and cloud do, live, from their events alone."""
