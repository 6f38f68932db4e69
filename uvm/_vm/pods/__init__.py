"""Pods: containers that share a VM and a network namespace, from specifications."""
