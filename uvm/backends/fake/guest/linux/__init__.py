"""The fake Linux guest."""
