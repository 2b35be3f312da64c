"""How does a command end before it is done? With one line, whoever ends it.

SIGTERM and SIGHUP, which batch systems send, raise KeyboardInterrupt as Ctrl-C does: what is open
is closed, locks are freed, workers end. What was ignored when the process began stays ignored:
SIGHUP under ``nohup``, Ctrl-C in a shell's background.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

_AT_ONCE = 1.0  # seconds in which a second signal belongs to the first: some send two


def run(argv: list[str] | None) -> int:
    """Run a command and return its exit code; without `argv` the process ends with it."""
    with Stop() as stop:
        try:
            from llm2nifti.cli import program

            return program.run(argv, stop)
        except KeyboardInterrupt:
            return stop.tell(sys.argv if argv is None else argv)
        finally:
            if argv is None:  # no traceback while the interpreter ends
                stop.leave_to_system()


class Stop:
    """While entered, signals that end a process raise KeyboardInterrupt in its main thread."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came; 0 is none
        self._when = 0.0
        self._before: dict[int, signal._HANDLER] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Stop:
        """Take over the signals to which nobody else sees."""
        sys.unraisablehook = self._once_more
        untouched = (signal.SIG_DFL, signal.default_int_handler)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, signal.SIGINT)  # Windows has no SIGHUP
            if signal.getsignal(number) in untouched:
                with suppress(ValueError):  # not the main thread
                    self._before[number] = signal.signal(number, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def leave_to_system(self) -> None:
        """From now on a signal ends the process at once."""
        self._before = dict.fromkeys(self._before, signal.SIG_DFL)

    def tell(self, argv: list[str]) -> int:
        """Say in one line that the command was ended, and return its exit code."""
        is_ctrl_c = self.number in (0, signal.SIGINT)
        what = "interrupted" if is_ctrl_c else f"ended by {signal.Signals(self.number).name}"
        is_anew = any(word.startswith("--ov") for word in argv)  # --overwrite, abbreviated or not
        with suppress(OSError):  # the terminal may be gone
            print(what if is_anew else f"{what}; the same command resumes", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # what is left would fail again, and end the process with 120
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
        return 1 if is_ctrl_c else 128 + self.number

    def _raise(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number and now - self._when < _AT_ONCE:
            return
        self.number, self._when = number, now
        raise KeyboardInterrupt

    def _once_more(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise again what a finaliser or a callback could not pass on."""
        if not self.number or not issubclass(lost.exc_type, KeyboardInterrupt):
            self._hook(lost)
            return
        from threading import Timer

        self._when = 0.0
        again = Timer(0.01, signal.raise_signal, [self.number])  # not while this hook runs
        again.daemon = True
        again.start()
