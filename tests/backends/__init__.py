"""Backends, as the conformance suite of the library sees them."""
