"""The native floor: layouts and algorithms in C11 (``native/``), bound by Cython (``_*.pyx``). No policy lives here."""
