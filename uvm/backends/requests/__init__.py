"""What HCS takes and refuses of documents and requests, for the backends that answer in its place."""
