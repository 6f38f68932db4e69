"""Windows CPython under Wine: how it is set up and run, with the standard library and pip."""
