"""The command line: parses and calls the library."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType

from shiftproof.cli.fields import naming_options
from shiftproof.cli.parser import make_parser

INTERRUPTED = 130
NOT_READ = 141
_INTERRUPTED_TEXT = "interrupted; the same command continues where it stopped"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    The status is 0, 1 for bad input or a failure, 130 if interrupted, and 141 if the output's reader went away.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without ± shows an escape and not an error
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = signal.getsignal(signal.SIGINT)
    ours = handler is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        options = make_parser().parse_args(arguments)
        warnings.formatwarning = lambda message, *_, **__: f"shiftproof: warning: {message}\n"  # no line of our code
        if names := getattr(options, "imports", None):
            from shiftproof.base.plugins import import_plugins

            import_plugins(names)
        with naming_options(options) if hasattr(options, "taken") else nullcontext():
            status: int = options.command(options)
        print(end="", flush=True)  # a flush at exit could fail too late to be caught here
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or _INTERRUPTED_TEXT, file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return NOT_READ
        print(f"shiftproof: error: {error}", file=sys.stderr)
        return 1
    finally:
        if ours:
            signal.signal(signal.SIGINT, handler)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end at once during an import: torch and numpy turn it into other errors there.

    Ending at once is safe: files are written whole or not at all, and workers end with this process.
    """
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, f"{_INTERRUPTED_TEXT}\n".encode())
            os._exit(INTERRUPTED)
        inner = inner.f_back
    signal.default_int_handler(number, frame)


def _nobody_reads() -> bool:
    """Return whether the reader of the standard output, `head` for example, is gone; if so, drop the rest."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are reported whatever the mask
    if not poll.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return True
