"""The fake Windows guest."""
