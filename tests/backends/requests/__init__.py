"""Tests of what HCS takes and refuses."""
