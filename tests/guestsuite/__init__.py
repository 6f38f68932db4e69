"""Scenarios of Linux guests, which run unchanged against the fake's guest and the agent's.

What a scenario does is asked over the protocol, and what it sees is what a host sees. A guest that differs
says so in its :class:`~tests.guestsuite.guests.Guest`; docs/compatibility.md has the reasons.
"""
