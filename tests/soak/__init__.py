"""The soak: random operations with faults on VMs of the fake, ``python -m tests.soak --seconds N``.

A round makes a host and a few VMs, on which several tasks each attach, release, query and remove at random
and get cancelled at random. A puppeteer answers what they ask of hosts and guests, in random order: it
carries a request out, refuses it, loses its answer, or lets the VM crash. When the tasks are through, each
VM has to agree with its host and guest; when all is released, nobody may hold anything in its ledgers; and
when the VMs are closed, nothing may be left on the host.

Time decides nothing in a round: everything follows from its seed.
"""
