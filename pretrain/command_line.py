"""Parts of every command line: the parser, the check of ``--out``, and the exit codes of a process that was stopped."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

from pretrain.errors import ConfigError, SetupError
from pretrain.names import shown, tell

INTERRUPTED = 130  # Ctrl-C
NOT_READ = 141  # what a shell reports for a pipe whose reader has gone
DANGLING = "link that leads nowhere"


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


def check_output_folder(path: Path, option: str = "--out") -> Path:
    """Checks that a folder can be written to, or made.

    Args:
        path: the folder.
        option: the option that names it, for messages.

    Returns:
        The path.

    Raises:
        ConfigError: the path, or one above it, is not a folder.
        SetupError: the folder cannot be written to, or made.
    """
    where = f"{option} {shown(path)}"
    kind = _kind(path, where)
    if kind not in ("", "folder"):
        raise ConfigError(f"{where} is a {kind}, but a folder is written; choose another path")
    _check_way(path, where)
    return path


def check_output_file(path: Path, option: str = "--out") -> Path:
    """Checks that a file can be written, or replaced; see ``check_output_folder``."""
    where = f"{option} {shown(path)}"
    kind = _kind(path, where)
    if kind == "folder":
        raise ConfigError(f"{where} is a folder, but a file is written; name a file")
    if kind not in ("", "file", DANGLING):
        raise ConfigError(f"{where} is a {kind}, which a file cannot replace; name a file")
    _check_way(path.parent, where)
    return path


def _check_way(path: Path, where: str) -> None:
    """Checks that the closest existing folder, at the path or above it, is writable."""
    for folder in (path, *path.parents):
        kind = _kind(folder, where)
        if kind == "folder":
            if not os.access(folder, os.W_OK | os.X_OK):
                raise SetupError(f"{where} cannot be written: {shown(folder)} is not yours to write to")
            return
        if kind:
            raise ConfigError(f"{where} is below {shown(folder)}, which is a {kind}; choose another path")


def _kind(path: Path, where: str) -> str:
    """The kind of file at this path; "" if there is none."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return DANGLING if path.is_symlink() else ""
    except OSError as error:
        raise SetupError(f"{where} cannot be used: {error.strerror}; choose another path") from error
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "device or pipe"
