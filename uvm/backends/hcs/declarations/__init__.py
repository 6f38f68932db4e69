"""The C declarations of the Windows functions that are used, and what makes Python modules of them.

For each DLL (or group of functions) ``NAME`` there is ``NAME.h`` with the functions and, where they need
any, ``NAME_types.h`` with types of their own; ``prelude.h`` holds the types that all share. They are plain
C, so that a compiler can hold ``NAME.h`` against the real Windows headers.

``python -m uvm.backends.hcs.declarations`` writes ``uvm/backends/hcs/_bindings/NAME.py``. Only that needs
cffi's parser of C (pycparser).
"""
