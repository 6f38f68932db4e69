"""Containers in the guest, from OCI specifications, through crun or runc."""
