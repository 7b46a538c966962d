"""Checks of ``--out`` that every stage makes before it does any work. Nothing is created here."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pretrain.errors import ConfigError, SetupError
from pretrain.names import shown


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


DANGLING = "link that leads nowhere"


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
