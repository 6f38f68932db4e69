"""Network configuration proxies: the client of one, and the compute agent that it calls back."""
