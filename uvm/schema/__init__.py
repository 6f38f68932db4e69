"""Models of the HCS v2 documents, the guest requests and the HCN documents, and their JSON.

One module for each reason to change: :mod:`~uvm.schema.system` (the compute-system document),
:mod:`~uvm.schema.devices`, :mod:`~uvm.schema.container`, :mod:`~uvm.schema.requests`,
:mod:`~uvm.schema.guest`, :mod:`~uvm.schema.properties`, :mod:`~uvm.schema.process`,
:mod:`~uvm.schema.network`, and :mod:`~uvm.schema.json`, which converts them.

Classes have the names of the HCS schema or of hcsshim, attributes those names in PEP 8; every field has Go's
zero value as its default, None for a pointer. Structures that the library neither writes nor reads are JSON
values of free form (``Any``).
"""
