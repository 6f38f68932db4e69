"""The C declarations of the Windows functions in use, and the generator of their Python modules.

For each DLL (or group of functions) ``NAME`` there is ``NAME.h`` with the functions and, if needed,
``NAME_types.h`` with their types; ``prelude.h`` holds the types that all share. They are plain C, so that a
compiler can check ``NAME.h`` against the real Windows headers.

``python -m uvm.backends.hcs.declarations`` writes ``uvm/backends/hcs/_bindings/NAME.py``. Only that needs
cffi's parser of C (pycparser).
"""
