"""The tests of uvm, and the programs behind `make bench`, `make soak` and the conformance check."""
