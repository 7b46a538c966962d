"""Which names an index may give to shards: names become paths, addresses and commands."""

from __future__ import annotations

import re

from pretrain.errors import DataError

SUFFIX = ".tar"
_LONGEST = 200  # bytes; the record file's name is longer by its suffix, and file systems take 255
# letters and digits of any script, and no sign that a shell, a path or an address takes for more than itself
_SAFE = re.compile(r"\w[\w .,+=@#%~:()\[\]^-]*")
_SAFE_IN_SHELL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+=@%^-]*")
_ALLOWED = "letters, digits, spaces and _ . , + = @ # % ~ : ( ) [ ] ^ -"


def problem_of(name: object) -> str:
    """What is wrong with a shard's name, or "" where it may be used."""
    if not isinstance(name, str):
        return f"the shard's name {str(name)[:40]!r} is not a text"
    shown = ascii(name[:80])
    if not name.lower().endswith(SUFFIX):
        return f"the shard's name {shown} does not end with {SUFFIX}"
    if len(name.encode(errors="replace")) > _LONGEST:
        return f"the shard's name {shown} has more than {_LONGEST} bytes"
    if not _SAFE.fullmatch(name):
        return (
            f"the shard's name {shown} is not safe to use as a file name: allowed are {_ALLOWED}, the first one a "
            "letter, a digit or _"
        )
    return ""


def check_name_for_shell(name: str, command: str) -> None:
    """Refuses a name that a shell could take for more than a word, however often the command has it evaluated.

    Raises:
        DataError: it has other characters than ASCII letters, digits and a few signs.
    """
    if not _SAFE_IN_SHELL.fullmatch(name):
        raise DataError(
            f"{command}: the file name {name[:80]!a} does not go into a command; allowed are A-Z a-z 0-9 and "
            "_ . , + = @ % ^ -, the first one a letter, a digit or _. Rename the shard and index the set again, or "
            "read it from a folder, http or S3"
        )
