"""Fakes and fault tools that ship: shaping proxy, process supervisor, model inflation."""
