"""For the people who use uvm: replaying what hcsshim was recorded to build and send."""
