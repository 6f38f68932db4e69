"""Tests of the in-memory backend."""
