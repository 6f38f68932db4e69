"""The command: pod files, the run of a pod, replays, and what is drawn."""
