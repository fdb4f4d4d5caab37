"""The fast path to an array; the .pyx beside this file documents each name."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def load_array(handle: bytes) -> NDArray[np.generic] | None: ...
def array_over(buffer: Buffer, code: str, shape: tuple[int, ...]) -> NDArray[np.generic]: ...
