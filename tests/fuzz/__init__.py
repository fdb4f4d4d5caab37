"""Coverage-guided fuzzing of what reads bytes that others wrote: `make fuzz SECONDS=60`. The inputs worth keeping are in `corpus`."""
