"""The guest inside a fake VM: its state, and its compute service, which speaks the GCS protocol in bytes.

``state.py``: mounts and the like. ``programs.py`` and ``builtin.py``: the programs of the guest.
``processes.py``, ``containers.py``: their state. ``service.py``: the connection, and the handlers.
``linux``, ``windows``: what differs. ``misbehaviour.py``: rules that spoil its answers.
"""
