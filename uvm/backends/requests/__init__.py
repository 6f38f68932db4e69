"""What HCS and HCN take and refuse of documents and requests, for the backends that answer in their place."""
