"""Completion of stages, options and files in the shell, as a script that shtab writes from the stages' parsers."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path

from pipelines.terminal.arguments import CONSOLE
from pretrain.command_line import Parser
from pretrain.errors import SetupError

SHELLS = ("bash", "zsh", "tcsh")
# Names that help texts use for paths; an option with another type or name takes no file.
PATHS = ("FILE", "FOLDER", "DIR", "RUN", "PATH", "SHARDS", "RUN_OR_WEIGHTS")


def completion_script(shell: str, stages: Mapping[str, tuple[str, str]]) -> str:
    """The script that teaches a shell the command ``vit-pretrain``.

    Args:
        shell: one of ``SHELLS``.
        stages: name → (module with ``parser()``, purpose).

    Raises:
        SetupError: shtab is not installed.
    """
    try:
        import shtab  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SetupError("completion needs shtab: pip install 'vit-pretrain[completion]'") from error

    root = Parser(prog=CONSOLE)
    commands = root.add_subparsers(dest="stage")
    for name, (module, purpose) in stages.items():
        parser = importlib.import_module(module).parser()
        for action in parser._actions:
            if _takes_path(action):
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[parser], add_help=False, help=purpose)
    return shtab.complete(root, shell)


def _takes_path(action: argparse.Action) -> bool:
    names = [action.metavar] if isinstance(action.metavar, str) else list(action.metavar or ())
    named = {part for name in names for part in name.split("|")}
    return not action.choices and (action.type is Path or bool(named & set(PATHS)))
