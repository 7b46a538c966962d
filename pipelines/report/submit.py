"""``report --submission``: writes the submission of a run, or checks those that others have written."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from pipelines.report import submission, submission_check
from pipelines.runs.run_record import RunRecord
from pipelines.terminal.output import duration
from pretrain.config import changes
from pretrain.config.schema.submission import Submission, Target
from pretrain.errors import ConfigError, DataError, SetupError
from pretrain.names import tell

FORM = "--target takes METRIC=VALUE with a share from 0 to 1, such as val/top1=0.77309"


def submit(args: argparse.Namespace) -> int:
    """Runs the stage with ``--submission``.

    Raises:
        ConfigError: the run gives no submission; it and DataError list all problems.
    """
    files = [path for path in args.runs if path.is_file()]
    if len(files) == len(args.runs):
        return _check(files, args)
    if files or len(args.runs) != 1:
        raise ConfigError("--submission takes one run folder, or submissions (.json) to check; not both")
    if args.out is None:
        raise ConfigError("--submission: name the file to write with --out, such as --out s16_77.json")
    entry = submission.submission_of(RunRecord.read(args.runs[0]), _target(args.target))
    _refuse(args.runs[0], submission_check.problems(entry), ConfigError)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        submission.write(args.out, entry)
    except OSError as error:
        raise SetupError(f"--out {args.out} cannot be written: {error}; free space or choose another") from error
    _print([args.out], [entry], as_json=args.json)
    return 0


def _check(paths: Sequence[Path], args: argparse.Namespace) -> int:
    for name in ("out", "target"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is for a run folder; {paths[0]} is a submission, which is only checked")
    entries = [submission.read(path) for path in paths]
    for path, entry in zip(paths, entries, strict=True):
        _refuse(path, submission_check.problems(entry), DataError)
    kinds = {
        (entry.race, entry.target, changes.digest({**entry.settings, "seed": 0}), entry.source) for entry in entries
    }
    if len(kinds) > 1:
        raise DataError(
            "these submissions differ in more than the seed (race, target, settings, code): check each alone"
        )
    if len({entry.seed for entry in entries}) < len(entries):
        raise DataError("two of these submissions have the same seed: each must be a run of its own")
    _print(paths, entries, as_json=args.json)
    return 0


def _refuse(path: Path, problems: list[str], error: type[ConfigError] | type[DataError]) -> None:
    if problems:
        raise error(f"{path} is not a valid submission:\n" + "\n".join(f"  {problem}" for problem in problems))


def _target(text: str | None) -> Target | None:
    if text is None:
        return None
    metric, _, value = text.rpartition("=")
    try:
        return Target(metric=metric, value=float(value))
    except ValueError as error:  # of float, or pydantic's
        raise ConfigError(f"--target {text}: {FORM}") from error


def _print(paths: Sequence[Path], entries: Sequence[Submission], *, as_json: bool) -> None:
    middle = statistics.median(entry.seconds for entry in entries)
    if as_json:
        rows = [entry.model_dump(mode="json", exclude={"settings", "curve", "starts"}) for entry in entries]
        tell(json.dumps({"submissions": rows, "median_seconds": middle}))
        return
    for path, entry in zip(paths, entries, strict=True):
        tell(
            f"{path}: {entry.race or 'own target'}, {entry.target.metric} {entry.curve[-1].value:.5f} at step "
            f"{entry.step:,} (seed {entry.seed}): {duration(entry.seconds)}, without evaluation "
            f"{duration(entry.seconds_without_evaluation)}; {entry.gpu_hours:.3g} GPU-hours on "
            f"{', '.join(entry.devices)}, {entry.exaflops:.4g} exaFLOPs"
        )
        if not submission_check.known_devices(entry):
            tell("note: the peak of these devices is not known (configs/devices.yaml), so the speed was not checked")
    if len(entries) > 1:
        tell(f"median of {len(entries)} seeds: {duration(middle)}")
