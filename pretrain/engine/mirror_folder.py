"""Copies of a run's checkpoints in an object store: ``MIRROR/NAME/checkpoints/step-00000100/…``.

A copy is complete once its COMPLETE.json exists, which is written last and removed first. Every other file is read back
after its upload and compared with the hash in the marker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pretrain import disk, records, threads
from pretrain.config.schema.experiment import Experiment
from pretrain.data.storage.objects import ObjectFolder
from pretrain.data.storage.transport import Missing
from pretrain.engine.checkpoint_folder import (
    COMPLETE_NAME,
    MARKER,
    STATE,
    examine,
    final_path,
    parse_marker,
    parse_state,
    publish,
    step_of,
    temporary_path,
)
from pretrain.engine.retention import Retention
from pretrain.engine.saving import no_space
from pretrain.errors import CheckpointError, DataError
from pretrain.files import digest_of, make_folders, remove_tree, sync

FILES_AT_ONCE = 4
UPLOAD_TRIES = 3  # of a file that does not read back as it was sent
_FILE_NAME = re.compile(r"(slices/)?[A-Za-z0-9_-][A-Za-z0-9._-]*")  # a marker from a store must not name other places


class DamagedCopy(CheckpointError):
    """A copy that is incomplete or does not have the hashes of its marker."""


class MirrorFolder:
    """The copies of one run's checkpoints. Methods raise DataError if the store fails or refuses.

    Args:
        objects: ``MIRROR/NAME/checkpoints``.
    """

    def __init__(self, objects: ObjectFolder) -> None:
        self.objects = objects
        self._metrics: dict[int, Mapping[str, float]] = {}

    @classmethod
    def of(cls, experiment: Experiment) -> MirrorFolder | None:
        """The copies of this run's checkpoints; None without ``checkpoint.mirror``."""
        address = experiment.mirror_address
        if address is None:
            return None
        return cls(ObjectFolder(address, experiment.cluster.remote))

    @property
    def address(self) -> str:
        """The address of the folder with all copies."""
        return self.objects.address

    def copies(self) -> dict[int, dict[str, int]]:
        """Step → name and size of every file of its copy, complete or not."""
        found: dict[int, dict[str, int]] = {}
        for path, size in self.objects.files().items():
            folder, _, name = path.partition("/")
            if COMPLETE_NAME.fullmatch(folder) and name:
                found.setdefault(step_of(Path(folder)), {})[name] = size
        return found

    def complete(self) -> list[int]:
        """Steps of complete copies, the newest first."""
        return sorted((step for step, files in self.copies().items() if MARKER in files), reverse=True)

    def marker(self, step: int) -> dict[str, Any]:
        """The marker of a copy. Raises: DamagedCopy if it is missing or damaged."""
        return self._parsed(step, MARKER, parse_marker)

    def state(self, step: int) -> dict[str, Any]:
        """The position of the run in a copy. Raises: DamagedCopy if it is missing or damaged."""
        return self._parsed(step, STATE, parse_state)

    def _parsed(self, step: int, name: str, parse: Callable[[str, bytes], dict[str, Any]]) -> dict[str, Any]:
        try:
            return parse(self._url(step), self.objects.read(self._name(step, name)))
        except Missing as error:
            raise DamagedCopy(f"{self._url(step)}: {name} is missing") from error
        except CheckpointError as error:
            raise DamagedCopy(str(error)) from error

    def has(self, step: int, marker: Mapping[str, Any]) -> bool:
        """Whether there is a complete copy of the checkpoint with this marker."""
        try:
            return self.marker(step) == marker
        except DamagedCopy:
            return False

    def problem(self, step: int) -> str | None:
        """Reads a copy to its end; what is wrong with it, or None."""
        try:
            for name, entry in self.marker(step)["files"].items():
                if digest_of(self._blocks(self._name(step, name), entry["bytes"])) != entry["blake2b"]:
                    return f"{name} does not have the hash that it was saved with"
        except (DamagedCopy, Missing) as error:
            return str(error)
        return None

    def upload(self, step: int, path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Uploads some files of a checkpoint and compares what the store then holds with their hashes.

        Args:
            step, path: the checkpoint.
            files: name → ``bytes`` and ``blake2b``, as in its marker.

        Raises:
            DataError: as the store; or a file was changed on its way, also when it was sent again. OSError: it cannot
                be read from the disk.
        """
        with threads.pool("mirror-files", FILES_AT_ONCE) as pool:
            _all(pool, [(self._upload_one, step, path, name, entry) for name, entry in files.items()])

    def _upload_one(self, step: int, path: Path, name: str, entry: Mapping[str, Any]) -> None:
        there = self._name(step, name)
        for _ in range(UPLOAD_TRIES):
            self.objects.upload(there, path / name)
            if digest_of(self._blocks(there, entry["bytes"])) == entry["blake2b"]:
                return
        raise DataError(
            f"{self.objects.url(there)} does not have the hash of {path / name} after {UPLOAD_TRIES} uploads: the file "
            "or the way to the store is damaged"
        )

    def _blocks(self, name: str, size: int) -> Iterator[bytes]:
        if size:
            yield from self.objects.blocks(name, size)

    def begin(self, step: int) -> None:
        """Makes the copy of a step incomplete, before its files are replaced."""
        self.objects.remove([self._name(step, MARKER)])

    def publish(self, step: int, path: Path) -> None:
        """Completes a copy whose files are uploaded, and removes files of an earlier copy of the same step."""
        marker = parse_marker(str(path), disk.current.read(path / MARKER))
        lacking = marker["files"].keys() - self.copies().get(step, {}).keys()
        if lacking:
            raise DataError(f"{self._url(step)}: {', '.join(sorted(lacking))} vanished after the upload")
        self.write_marker(step, path)
        extra = self.copies().get(step, {}).keys() - marker["files"].keys() - {MARKER}
        self.objects.remove([self._name(step, name) for name in sorted(extra)])

    def write_marker(self, step: int, path: Path) -> None:
        """Copies the marker of a checkpoint."""
        self.objects.write(self._name(step, MARKER), disk.current.read(path / MARKER))
        self._metrics.pop(step, None)

    def remove(self, step: int, files: Mapping[str, int]) -> None:
        """Removes a copy; if this is interrupted, what is left does not look complete."""
        names = sorted(files, key=lambda name: name != MARKER)
        self.objects.remove([self._name(step, name) for name in names])
        self._metrics.pop(step, None)

    def remove_after(self, step: int) -> None:
        """Removes copies of later steps, which the run has abandoned."""
        for later, files in self.copies().items():
            if later > step:
                self.remove(later, files)

    def prune(self, rule: Retention, newest: int) -> None:
        """Removes the copies that the rule does not keep, interrupted uploads, and copies of later steps.

        Args:
            rule: which checkpoints to keep.
            newest: the step that was just copied; the run has abandoned later ones.
        """
        copies = self.copies()
        complete = {step: self._metrics_of(step) for step, files in copies.items() if MARKER in files}
        kept = rule.kept({step: metrics for step, metrics in complete.items() if step <= newest})
        for step, files in copies.items():
            if step not in kept:
                self.remove(step, files)

    def _metrics_of(self, step: int) -> Mapping[str, float]:
        if step not in self._metrics:
            try:
                self._metrics[step] = self.marker(step).get("metrics", {})
            except DamagedCopy:
                return {}
        return self._metrics[step]

    def fetch(self, step: int, folder: Path) -> tuple[Path, dict[str, Any]]:
        """Downloads a copy into a run's checkpoint folder, verified and complete.

        Raises:
            DamagedCopy: a file is missing or does not have its hash. CheckpointError: it does not fit on the disk, or
                cannot be written there. DataError: as the store.
        """
        marker, temporary, final = self.marker(step), temporary_path(folder, step), final_path(folder, step)
        if strange := [name for name in marker["files"] if not _FILE_NAME.fullmatch(name)]:
            raise DamagedCopy(f"{self._url(step)}: {MARKER} names {strange[0]!r}, which is not a checkpoint's file")
        needed = sum(entry["bytes"] for entry in marker["files"].values())
        try:
            remove_tree(temporary)
            make_folders(temporary / "slices")
            if (error := no_space(folder, needed, disk.current.free_bytes(temporary))) is not None:
                raise error
            with threads.pool("mirror-files", FILES_AT_ONCE) as pool:
                _all(pool, [(self._download, step, temporary, name, marker["files"][name]) for name in marker["files"]])
            records.write(temporary / MARKER, marker)
            found, problem = examine(temporary)
            if found is None:
                raise DamagedCopy(f"{self._url(step)}: {problem}")
            publish(temporary, final)
        except OSError as failure:
            raise CheckpointError(f"{self._url(step)} cannot be written to {temporary}: {failure}") from failure
        finally:
            remove_tree(temporary)
        return final, marker

    def _download(self, step: int, folder: Path, name: str, entry: Mapping[str, Any]) -> None:
        try:
            disk.current.write_blocks(folder / name, self._blocks(self._name(step, name), entry["bytes"]))
        except Missing as error:
            raise DamagedCopy(f"{self._url(step)}: {name} is missing") from error
        sync(folder / name)

    def _name(self, step: int, name: str) -> str:
        return f"{final_path(Path(), step).name}/{name}"

    def _url(self, step: int) -> str:
        return self.objects.url(final_path(Path(), step).name)


def _all(pool: ThreadPoolExecutor, calls: list[tuple]) -> None:
    """Makes all calls, and raises the first error."""
    for done in [pool.submit(*call) for call in calls]:
        done.result()
