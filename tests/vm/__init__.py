"""Tests of the async driver, of the buses and of UtilityVM, on the in-memory backend."""
