from typing import Any

from copyless._core._blocks import Block

DATA_OFFSET: int

class _Value:
    _obj: Any
    _lock: Any
    def _stand(self, obj: object, lock: object, block: Block | None, code: str, size: int) -> None: ...
    # value, add, exchange, compare_exchange, get_obj and get_lock: in the classes of sharedctypes, with their types
