"""Tools for tests: conformance of backends, and replay of recorded operations."""
