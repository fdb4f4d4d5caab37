import pickle
from collections.abc import Iterable
from typing import Any

from _typeshed import ReadableBuffer

from copyless.errors import CorruptSegmentError

class CorruptPickleError(CorruptSegmentError, pickle.UnpicklingError): ...

def check_pickle(data: ReadableBuffer) -> None: ...
def loads(data: ReadableBuffer, buffers: Iterable[object] | None = None) -> Any: ...
