"""Tools for tests: fixtures and strategies for what is built on ``uvm``, conformance of backends, replay."""
