"""What is played on a real Hyper-V host: ``make test-hyperv``, or ``python -m tests.hyperv``."""
