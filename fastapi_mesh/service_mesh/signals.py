"""Hears SIGTERM and SIGINT before the server's own handler, which gets them when the drain is over; and SIGUSR1, by
which a node is asked to leave the registry and go on serving (HAProxy's soft stop).
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Handler = Callable[[int, FrameType | None], object] | int | None

ENDING = (signal.SIGTERM, signal.SIGINT)
LEAVING: int | None = getattr(signal, "SIGUSR1", None)
"""None where there is no such signal (Windows)."""


class SignalChain:
    """Puts itself before the handlers that are installed now (uvicorn installs its own before the lifespan starts).

    `heard` is called with the number inside the signal handler, so it may only set flags and wake the loop; it returns
    True to keep the signal until `pass_on`, False to let it through at once. `asked` is called likewise for SIGUSR1,
    which is heard only where nobody else does anything with it. A server that takes signals through
    `loop.add_signal_handler` (hypercorn) gets them at once in any case.
    """

    def __init__(self, heard: Callable[[int], bool], asked: Callable[[], object]) -> None:
        self._heard = heard
        self._asked = asked
        self._previous: dict[int, Handler] = {}

    @property
    def hears_leaving(self) -> bool:
        """Whether SIGUSR1 reaches `asked`."""
        return LEAVING in self._previous

    def install(self) -> None:
        """Chain in, from the main thread; elsewhere Python allows no handlers, and nothing happens."""
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        for number in ENDING:
            handler = signal.getsignal(number)
            if handler is not None and handler is not signal.SIG_IGN:  # not from C, and not ignored on purpose
                self._previous[number] = handler
                signal.signal(number, self._handle)

        if LEAVING is not None:
            handler = signal.getsignal(LEAVING)
            if handler is signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), SignalChain):
                self._previous[LEAVING] = handler
                signal.signal(LEAVING, self._handle)

    def pass_on(self, number: int, frame: FrameType | None = None) -> None:
        """Do what would have been done without us."""
        previous = self._previous.get(number, signal.SIG_DFL)
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def restore(self) -> None:
        """Put the handlers back, where nobody else has chained in after us."""
        for number, previous in list(self._previous.items()):
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)
                del self._previous[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == LEAVING:
            self._asked()
            previous = self._previous.get(number)
            if callable(previous):  # another node of this process
                previous(number, frame)
        elif not self._heard(number):
            self.pass_on(number, frame)
