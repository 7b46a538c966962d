"""``python -m pipelines slurm-scripts DIR``: the job scripts and the recipes that they name, where no checkout is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.terminal.arguments import stage_parser
from pretrain.command_line import Parser, check_output_folder
from pretrain.errors import ConfigError
from pretrain.files import write_atomic
from pretrain.names import shown, tell
from pretrain.shipped_files import CONFIGS, JOB_SCRIPTS

FOLDERS = {"slurm": JOB_SCRIPTS, "configs": CONFIGS}
EXAMPLES = "example: python -m pipelines slurm-scripts ~/vit"
MOST_LISTED = 5


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    folder = parser().parse_args(argv).folder
    check_output_folder(folder, "DIR")
    num_written = write_scripts(folder)
    tell(f"{folder}: slurm/ and configs/, {num_written:,} files written, the others were already there")
    if not (folder / "slurm" / "site.sh").exists():
        tell(f"next: cd {folder} && cp slurm/site.example.sh slurm/site.sh")
        tell(f"then adapt slurm/site.sh, with RUN_PYTHON={sys.executable}, and call sbatch from {folder}")
    return 0


def write_scripts(folder: Path) -> int:
    """Writes the files that are missing; returns their number.

    Raises:
        ConfigError: a file is there with other content; nothing has been written.
    """
    files = list(_files(folder))
    others = [target for source, target in files if target.exists() and target.read_bytes() != source.read_bytes()]
    if others:
        listed = ", ".join(shown(path) for path in others[:MOST_LISTED])
        more = f" and {len(others) - MOST_LISTED:,} more" if len(others) > MOST_LISTED else ""
        raise ConfigError(f"{listed}{more}: differ from the shipped files; remove them, or name another folder")
    missing = [(source, target) for source, target in files if not target.exists()]
    for source, target in missing:
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        write_atomic(target, content)
        if content.startswith(b"#!"):
            target.chmod(target.stat().st_mode | 0o111)
    return len(missing)


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser("slurm-scripts", "Writes slurm/ and configs/, from which sbatch is called.", EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write them to")
    return parser


def _files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(shipped file, its place below ``folder``) for each file; a site's own settings in a checkout are not shipped."""
    for name, source in FOLDERS.items():
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.name != "site.sh":
                yield path, folder / name / path.relative_to(source)
