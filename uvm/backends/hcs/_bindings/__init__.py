"""Generated from ``declarations``: cffi's view of the DLLs. Do not edit."""
