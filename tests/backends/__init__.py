"""Backends under the library's conformance suite."""
