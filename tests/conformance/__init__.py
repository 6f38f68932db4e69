"""Run files of recorded hcsshim behaviour: ``python -m tests.conformance FILE...``."""
