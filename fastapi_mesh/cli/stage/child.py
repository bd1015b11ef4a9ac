"""Runs uvicorn, with the arguments given, as a child of the demo: it ends when its parent does, however that ends.

Its standard input is a pipe that nobody writes to and only the parent holds the other end of.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 5.0
"""Seconds that the server may take to end after its parent has."""


def end_with_parent() -> None:
    """Wait for the end of the parent, then ask this process to end, then make it."""
    while os.read(sys.stdin.fileno(), 1):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with_parent, name="end-with-parent", daemon=True).start()
    sys.argv[0] = "uvicorn"
    runpy.run_module("uvicorn", run_name="__main__")


if __name__ == "__main__":
    main()
