"""What arbitrary bytes must not do to what reads a guest: targets for a fuzzer, and a corpus to start from.

``python -m tests.fuzz`` runs the fuzzer (atheris); ``test_corpus.py`` runs the targets without it.
"""
