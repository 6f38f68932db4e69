"""A stand-in for computecore.dll and computenetwork.dll, written in C; ``double.h`` says how it works."""
