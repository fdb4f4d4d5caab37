"""A tour of the memory object: the same as mpi4py's MPI.memory, without MPI."""

import numpy as np

from copyless.memory import Alloc_mem, Free_mem, Get_address, Memory

# A read-only view of bytes: nothing is copied, writing is refused.
text = b"shared, not copied"
view = Memory.frombuffer(text, readonly=True)
print(view.readonly, view.nbytes, view[0:6].tobytes())
try:
    view[0] = 65
except TypeError as error:
    print("refused:", error)

# Two Memory objects over one address see the same bytes.
first = Memory.allocate(8, clear=True)
second = Memory.fromaddress(first.address, first.nbytes)
second[0:3] = b"abc"
print(first.tobytes(), first.address == Get_address(second))

# Casts, as in memoryview.
numbers = first.cast("i", [2, 1])
numbers[1, 0] = 7
print(numbers.tolist()[1], first.toreadonly().readonly)

# A NumPy array over allocated memory. The array keeps the memory, even after Free_mem.
memory = Alloc_mem(10 * 8)
array = np.frombuffer(memory, dtype="f8")
array[:] = np.arange(10)
Free_mem(memory)
print(array.sum())
try:
    Free_mem(first)
except ValueError as error:
    print("refused:", str(error).partition("> ")[2])
