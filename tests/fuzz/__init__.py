"""Coverage-guided fuzzing of the code that reads bytes of other processes: `make fuzz SECONDS=60`.

The inputs worth keeping are in `corpus`.
"""
