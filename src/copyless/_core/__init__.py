"""The native floor: layouts and algorithms in C11 (``native/``), bound by Cython (``_native``). No policy lives here."""
