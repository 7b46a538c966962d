"""The fast tier: frequent checkpoints in the memory or on the disk of each node, with a copy on the next node.

A save copies this rank's slices to host memory; a thread writes them to the node, then passes them on around the ring
of nodes (``distributed/neighbours.py``). The ranks report their progress at the boundary of each step, as for other
checkpoints (``saving.py``). Once all parts and copies of a checkpoint exist, older ones are removed. A save that fails
anywhere is removed everywhere and reported, and the training continues. ``fast_resume.py`` reads the result.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pretrain import disk, records, threads
from pretrain.distributed.collectives import broadcast_object, gather_objects, raise_together
from pretrain.distributed.neighbours import Parcel, PeerLost, Ring, SideChannel, Sink
from pretrain.engine import saving
from pretrain.engine.fast_folder import PREFIX, Arrival, Key, NodeFolder, Part, remove_leftovers
from pretrain.engine.saving import InFlight
from pretrain.engine.session import Session
from pretrain.engine.slices import HostCopy
from pretrain.errors import CheckpointError, SetupError
from pretrain.files import digest, remove_tree
from pretrain.sharding.protocol import size_text

MARGIN_BYTES = 2**30  # stay free in the folder: data processes share memory of the same kind
SAVE_LIMIT_S = 600.0  # a save that takes longer is stuck
ID_FILE, ID_SHAPE = "fast.json", {"id": records.text}

# Transfers wait for peers, so they need a thread other than that of the checkpoints on the shared disk.
_thread = threads.pool("fast-checkpoint", 1)


@dataclass(frozen=True)
class FastPolicy:
    """When fast checkpoints are made, and where.

    Attributes:
        every: steps between two; None: the time alone decides.
        every_s: seconds between two; None: the steps alone decide.
        folder: on each node.
        copies: whether the next node gets a copy.
    """

    every: int | None
    every_s: float | None
    folder: Path
    copies: bool = True


@dataclass
class _Save(InFlight):
    """A save in flight: every rank writes and passes on its part; then each node removes older checkpoints."""

    key: Key
    began: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> int:
        """Progress of this rank; FAILED if its thread is stuck."""
        return saving.FAILED if self.is_stuck else super().progress

    @property
    def is_stuck(self) -> bool:
        """Whether this rank's thread takes too long."""
        return super().progress in saving.BUSY and time.monotonic() - self.began > SAVE_LIMIT_S


class FastTier:
    """The fast checkpoints of a run, seen from this rank. Collective: its creation.

    Args:
        policy: when and where.
        session: this process.

    Attributes:
        ring: the nodes of the job.
        node: the checkpoints on this node.
        channel: to other ranks; None: there are none.
        copy: host buffers of the save in flight.

    Raises:
        SetupError: the folder of a node does not exist or cannot be written.
    """

    def __init__(self, policy: FastPolicy, session: Session) -> None:
        self.policy, self.session = policy, session
        self.ring = Ring.of(session.rank)
        self.copies = policy.copies and len(self.ring.nodes) > 1
        self.node = NodeFolder(policy.folder / f"{PREFIX}{session.folder.path.name}-{_run_id(session)}")
        self.channel = SideChannel() if session.rank.world > 1 else None
        self.copy = HostCopy()
        self._save: _Save | None = None
        self._node_bytes: int | None = None
        self._last, self._is_late, self._is_off = time.monotonic(), False, False
        self._num_failed: int | None = None  # saves in a row; None: none has ended yet
        raise_together(self._refusal(), doing="looking at checkpoint.fast.folder")
        removed = remove_leftovers(self.node) if self.ring.leads(session.rank.rank) else []
        for host, names in gather_objects((session.rank.host, removed)):
            if names:
                session.say(f"{host}: removed fast checkpoints without a save for a day: {', '.join(names)}")
        if policy.copies and not self.copies:
            session.say("fast checkpoints have no copy on another node, since this job has one node")

    def _refusal(self) -> SetupError | None:
        folder, host = self.policy.folder, self.session.rank.host
        try:
            if not disk.current.is_folder(folder):
                return SetupError(
                    f"checkpoint.fast.folder: {folder} is not a folder on {host}: create it (is a disk not mounted?), "
                    "name another one, or set checkpoint.fast: null"
                )
            disk.current.make_folder(self.node.path)
        except OSError as error:
            return SetupError(f"checkpoint.fast.folder: {folder} on {host} cannot be written: {error}")
        return None

    def is_due(self, step: int) -> bool:
        """Whether a save is due by training, or has been waiting for the one before it."""
        every = self.policy.every
        return not self._is_off and (self._is_late or (every is not None and step % every == 0))

    @property
    def is_due_by_time(self) -> bool:
        """Whether a save is due by this rank's clock."""
        every_s = self.policy.every_s
        return not self._is_off and every_s is not None and time.monotonic() - self._last >= every_s

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight, so that the next one has to wait; equal on all ranks."""
        return self._save is not None

    def postpone(self) -> None:
        """Remembers a save that is due while another one is in flight; it begins once that is done."""
        self._is_late = True

    def begin(self, part: Part) -> None:
        """Begins a save of this rank's part, whose tensors are those of ``copy``. Collective: the first time."""
        assert self._save is None
        if self._node_bytes is None:
            sizes, here = gather_objects(part.num_bytes), self.ring.nodes[self.ring.node_of(self.session.rank.rank)]
            senders = [sender for rank in here for sender in self.ring.senders(rank)] if self.copies else []
            self._node_bytes = sum(sizes[rank] for rank in (*here, *senders))
        self._last, self._is_late = time.monotonic(), False
        self._save = _Save(part.key)
        self._save.start(partial(self._write, part, self.copies), saving.WRITING, _thread)

    @property
    def progress(self) -> int:
        """This rank's progress, to be reported at the boundary of a step."""
        return saving.IDLE if self._save is None else self._save.progress

    def advance(self, progress: list[float]) -> None:
        """Continues the save in flight once every rank has done its part. Collective: if a rank failed.

        Args:
            progress: of every rank, as reported at this boundary.
        """
        stage = saving.all_ranks_are(progress)
        if self._save is None or stage in saving.BUSY:
            return
        key = self._save.key
        if stage == saving.FAILED:
            self._abandon(self._save)
        elif stage == saving.WRITTEN:
            self._save.start(partial(self.keep_only, key), saving.COMPLETING, _thread)
        elif stage == saving.COMPLETE:
            self._announce(key.step)
            self._save, self._num_failed = None, 0

    def finish(self, *, discard: bool) -> None:
        """Waits until no save is in flight, at most SAVE_LIMIT_S. Collective: yes.

        Args:
            discard: remove all fast checkpoints, since a newer state is on the shared disk.
        """
        while self._save is not None:
            self._save.join(SAVE_LIMIT_S)
            self.advance(gather_objects(self._save.progress))
        if discard:
            self.keep_only(None)

    def keep_only(self, key: Key | None) -> None:
        """Removes all other checkpoints of this run from this node, by its first rank."""
        if self.ring.leads(self.session.rank.rank):
            with contextlib.suppress(OSError):  # what stays is removed after the next save
                self.node.prune([] if key is None else [key])

    def close(self) -> None:
        """Ends the connections of this rank, unless they are in use: then the process is about to end."""
        if self.channel is not None and self._save is None:
            self.channel.close()
            self.channel = None

    def _announce(self, step: int) -> None:
        """Says that fast checkpoints work, the first time and after failures."""
        if self._num_failed == 0:
            return
        size = size_text(self._node_bytes or 0)
        again = f" again, after {self._num_failed} that failed" if self._num_failed else ""
        copies = "with a copy on the next node" if self.copies else "without copies on other nodes"
        self.session.say(f"step {step}: fast checkpoints work{again}: {size} on each node, {copies}")

    def _write(self, part: Part, copies: bool) -> None:
        """This rank's part of a save, run in the thread. Raises: PeerLost, CheckpointError."""
        rank, problem = self.session.rank, None
        try:
            self._require_space(part.key)
            self.node.write(rank.rank, part)
        except Exception as failure:  # any failure must reach the other ranks at the next boundary
            problem = CheckpointError(f"rank {rank.rank} on {rank.host} could not write {self.node.path}: {failure}")
        if copies:  # also without a part of its own: the neighbours wait
            self._pass_on(part.key, wrote=problem is None)
        if problem is not None:
            raise problem

    def _require_space(self, key: Key) -> None:
        needed, free = (self._node_bytes or 0) - self.node.num_bytes(key), disk.current.free_bytes(self.policy.folder)
        if needed + MARGIN_BYTES > free:
            raise CheckpointError(
                f"no space: {size_text(needed)} are needed and {size_text(MARGIN_BYTES)} stay free for data processes, "
                f"but {size_text(free)} are free; enlarge it, or choose another checkpoint.fast.folder"
            )

    def _pass_on(self, key: Key, *, wrote: bool) -> None:
        """Sends this rank's part to the next node, and receives those of the node before."""
        assert self.channel is not None
        own, arrivals = self.session.rank.rank, []

        def open_from(source: int, head: bytes, num_bytes: int) -> Sink:
            if not wrote:  # most likely there is no space
                return lambda block: None
            arrivals.append(Arrival(self.node.part_file(key, source), head))
            return arrivals[-1].take

        parcel = Parcel(*self.node.sealed(key, own)) if wrote else None
        sources = {source: partial(open_from, source) for source in self.ring.senders(own)}
        self.channel.exchange(parcel, self.ring.receiver(own), sources)
        for arrival in arrivals:
            arrival.finish()

    def _abandon(self, save: _Save) -> None:
        """Removes a save that failed on any rank, and reports the reason. Collective: yes."""
        rank, error = self.session.rank, save.error
        late = f"rank {rank.rank} on {rank.host} has not finished it in {SAVE_LIMIT_S:.0f} s" if save.is_stuck else None
        found = gather_objects((late or (error and str(error)), late is not None, isinstance(error, PeerLost)))
        stuck, lost = any(each[1] for each in found), any(each[2] for each in found)
        reasons = [reason for reason, is_stuck, _ in found if reason is not None and is_stuck == stuck]
        reason = next(iter(reasons), f"a rank took longer than {SAVE_LIMIT_S:.0f} s")  # it has finished since
        self._save = None
        if self.ring.leads(rank.rank) and not save.is_in(saving.COMPLETING):
            remove_tree(self.node.save_path(save.key))
        self.copies, self._is_off = self.copies and not lost, self._is_off or stuck
        if lost or stuck or not self._num_failed:
            consequence = "there are no more until the next start" if stuck else "the one before it stays"
            consequence += "; the next ones have no copies on other nodes" if lost and not stuck else ""
            self.session.say(
                f"step {save.key.step}: no fast checkpoint: {reason}; {consequence}, and the training continues"
            )
        self._num_failed = (self._num_failed or 0) + 1


def _run_id(session: Session) -> str:
    """A name of this run folder that no other one has, also not a copy of it or a later one at its place.

    Collective: yes.

    Raises:
        SetupError: the file with it cannot be read or written.
    """
    name, error, path = "", None, session.folder.path / ID_FILE
    if session.rank.is_main:
        try:
            found = records.read(path, ID_SHAPE, without_hash=lambda value: False)
            if found.problem is not None:
                session.say(f"{path}: {found.problem}: earlier fast checkpoints of this run are not found")
            if found.value is None:
                records.write(path, {"id": uuid.uuid4().hex})
                found = records.read(path, ID_SHAPE, without_hash=lambda value: False)
            assert found.value is not None
            name = digest(f"{found.value['id']} {session.folder.path.resolve()}".encode())[:12]
        except OSError as failure:
            error = SetupError(f"{path} cannot be written: {failure}")
    raise_together(error, doing="naming the run's fast checkpoints")
    return broadcast_object(name)
