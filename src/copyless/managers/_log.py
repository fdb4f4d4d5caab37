"""The log of managers. It is bounded, because every process that can connect to a server can make it write a line."""

from __future__ import annotations

import logging
import threading
import time

__all__ = ["Bounded", "log"]

log = logging.getLogger("copyless.managers")


class Bounded(logging.Filter):
    """Passes some lines at once, then one each second, and shortens long ones."""

    BURST, LONGEST = 100, 500

    def __init__(self) -> None:
        super().__init__()
        self._tokens, self._at, self._left_out = float(self.BURST), time.monotonic(), 0
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            now = time.monotonic()
            self._tokens, self._at = min(self.BURST, self._tokens + now - self._at), now
            if self._tokens < 1:
                self._left_out += 1
                return False
            self._tokens -= 1
            left_out, self._left_out = self._left_out, 0
        text = record.getMessage()
        if len(text) > self.LONGEST:
            text = text[: self.LONGEST] + "..."
        if left_out:
            text += f" ({left_out:,} lines before this one were left out)"
        record.msg, record.args = text, ()
        return True


log.addFilter(Bounded())
