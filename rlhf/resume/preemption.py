"""Being asked to stop: after SIGTERM or SIGUSR1 a loop finishes its step and saves; a second one quits. Torch-free."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf.errors import PreemptedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
HINTS = ("start it again: it goes on from what it kept",)


class Terminated(KeyboardInterrupt):
    """The scheduler wants the machine back. An interrupt, so that no library takes it for a failure."""


class Stop:
    """Whether this run was asked to stop, and whether somebody is looking."""

    def __init__(self) -> None:
        self.asked = False
        self._patient = False

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Inside, the first signal only sets `asked`; who is inside looks after every step."""
        before, self._patient = self._patient, True
        try:
            yield
        finally:
            self._patient = before

    def leave(self, name: str) -> None:
        """PreemptedError if the run was asked to stop; called where everything is saved."""
        if self.asked:
            raise PreemptedError(f"{name} was asked to stop", hints=HINTS)

    def signalled(self, *_: object) -> None:
        """The signal's handler."""
        if self.asked or not self._patient:
            raise Terminated
        self.asked = True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside, the signals ask to stop; outside the main thread nothing changes."""
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop.signalled) for number in SIGNALS}
    except ValueError:
        yield stop
        return
    try:
        yield stop
    except Terminated:
        raise PreemptedError("asked to stop", hints=HINTS) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
