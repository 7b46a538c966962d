"""The parser of every command line, and the exit codes of a process that was stopped from outside."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn

from pretrain.names import tell

INTERRUPTED = 130  # Ctrl-C
NOT_READ = 141  # what a shell reports for a pipe whose reader has gone


class Parser(argparse.ArgumentParser):
    """An argument parser with two differences from Python's.

    Options are not abbreviated: with abbreviations, a new option would change what an old command means. Errors quote
    what was typed, so they are printed with ``tell``, which escapes control characters.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Prints the usage and the message on stderr; exit code 2."""
        self.print_usage(sys.stderr)
        tell(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


def reader_left() -> int:
    """Handles a ``BrokenPipeError`` (``| head``); returns the exit code.

    Python flushes stdout once more on its way out and would report the closed pipe there, so stdout is pointed at
    /dev/null first.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NOT_READ
