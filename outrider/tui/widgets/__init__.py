"""The parts of the screens, one a file; each draws itself from the state."""
