"""Signals ask a run to stop; it stops itself at the next step boundary."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Time limits, preemption, Ctrl-C and a lost terminal."""


class Interruption:
    """While active, the signals only set `requested`: no state is saved inside a handler, in the middle of a step."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self.arm()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def arm(self) -> None:
        """Take the signals over, again where a library has put in handlers of its own meanwhile, as Lightning does."""
        for number in SIGNALS:
            signal.signal(number, self._request)

    def _request(self, number: int, frame) -> None:
        self.requested = True
