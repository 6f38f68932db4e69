"""ttrpc: calls of services over a byte stream, both ends of it (``github.com/containerd/ttrpc``)."""
