"""Tests of the guest connection."""
