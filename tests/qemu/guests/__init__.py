"""Programs that are the first process of VMs, instead of the agent."""
