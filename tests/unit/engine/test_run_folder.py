"""The run folder: one owner at a time, taken over from the dead, and a verdict that is complete."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import disk, records
from pretrain.disk import Disk, FencedOut
from pretrain.distributed.processes import Identity, lives
from pretrain.distributed.rank import Rank
from pretrain.engine import ownership, run_folder
from pretrain.engine.ownership import Ownership, living_owner
from pretrain.engine.run_folder import COMPLETE, RunFolder, Verdict, read_verdict
from pretrain.errors import SetupError
from pretrain.files import Journal, write_atomic
from tests.command import ROOT
from tests.faulty_disk import FaultyDisk, SlowDisk, using

ALONE = Rank(0, 0, 1, 1, "here", "alone")
LOCAL = ("local", 0)
ELSEWHERE = Identity("elsewhere", 1, "another-boot", "pid:[1]", 1)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is found after a moment; whoever gives signs of life gives them often."""
    monkeypatch.setattr(ownership, "LEASE_S", 0.2)
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.01)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is not found in the time of a test: only a sign of life ends the watch."""
    monkeypatch.setattr(ownership, "LEASE_S", 1000.0)
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.01)


def earlier(number: int = 0) -> Identity:
    """A process with this one's number that lived before it."""
    own = Identity.own()
    assert own.started is not None
    return dataclasses.replace(own, started=own.started - 1 - number)


def dead() -> Identity:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return dataclasses.replace(Identity.own(), pid=process.pid)


def owned(run: Path, identity: Identity, job: tuple[str, int] = ("7", 0)) -> Ownership:
    run.mkdir(parents=True, exist_ok=True)
    owner = Ownership(run, job, identity=identity)
    owner.acquire()
    owner.beat()
    return owner


class Beating:
    """An owner that gives signs of life."""

    def __init__(self, beat: object) -> None:
        self._beat, self._end = beat, threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.005):
            self._beat()  # type: ignore[operator]


def test_verdict_and_release(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(ALONE, LOCAL)
    assert (tmp_path / "run" / "lock.json").exists() and folder.checkpoints.is_dir()
    verdict = Verdict(COMPLETE, "done", 12)
    assert folder.close(verdict, LOCAL, writes=True) is verdict
    record = json.loads(folder.exit.read_text())
    assert (record["outcome"], record["step"], record["exit_code"]) == ("complete", 12, 0)
    assert not (tmp_path / "run" / "lock.json").exists()
    write_atomic(tmp_path / "run" / "log.txt", "no fence is left")


def test_a_new_start_removes_the_old_verdict(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.exit.write_text("{}")
    folder.open(ALONE, LOCAL)
    assert not folder.exit.exists()
    folder.close(None, LOCAL, writes=True)


def test_a_second_owner_is_refused(tmp_path: Path, patient: None) -> None:
    owned(tmp_path, Identity.own())
    for job in (LOCAL, ("7", 0), ("8", 1)):
        with pytest.raises(SetupError, match=r"is in use by job 7 .*wait for it, stop it"):
            RunFolder(tmp_path).open(ALONE, job)
    assert living_owner(tmp_path, patience_s=0) is not None


def test_a_second_owner_is_refused_while_one_elsewhere_gives_signs_of_life(tmp_path: Path, patient: None) -> None:
    with Beating(owned(tmp_path, ELSEWHERE).beat), pytest.raises(SetupError, match=r"in use by job 7 .*on elsewhere"):
        RunFolder(tmp_path).open(ALONE, ("8", 0))


def test_a_full_disk_is_no_silence(tmp_path: Path, patient: None) -> None:
    owner = owned(tmp_path, ELSEWHERE)

    def beat() -> None:
        with pytest.raises(OSError, match="No space"):
            owner.beat()

    full = FaultyDisk("ENOSPC", 0, lasting=True, changes_only=True)
    full.touch = disk.current.touch  # type: ignore[method-assign]
    with using(full), Beating(beat), pytest.raises(SetupError, match="in use by job 7"):
        Ownership(tmp_path, ("8", 0)).acquire()


@pytest.mark.parametrize("of", [dead, earlier])
def test_a_dead_owner_on_the_same_machine_is_replaced_at_once(tmp_path: Path, patient: None, of: object) -> None:
    """Its process has ended, or its number is another process's by now."""
    owned(tmp_path, of())  # type: ignore[operator]
    assert living_owner(tmp_path, patience_s=0) is None
    folder = RunFolder(tmp_path)
    folder.open(ALONE, LOCAL)
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    folder.close(None, LOCAL, writes=True)


def test_the_same_jobs_next_restart_takes_over_at_once(tmp_path: Path, patient: None) -> None:
    owned(tmp_path, ELSEWHERE)
    assert owned(tmp_path, ELSEWHERE, ("7", 1)).epoch == 2


def test_a_silent_owner_elsewhere_is_replaced(tmp_path: Path, soon: None) -> None:
    """Whatever its clock says: only silence counts."""
    owned(tmp_path, ELSEWHERE)
    content = json.loads((tmp_path / "lock.json").read_text())
    (tmp_path / "lock.json").write_text(json.dumps(content | {"heartbeat": time.time() + 1e6}))
    assert owned(tmp_path, Identity.own(), LOCAL).epoch == 2


def test_one_that_gives_the_folder_back_while_it_is_watched(tmp_path: Path, patient: None) -> None:
    owner = owned(tmp_path, ELSEWHERE)
    threading.Timer(0.1, owner.release).start()
    assert owned(tmp_path, Identity.own(), LOCAL).epoch == 2


@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_a_lock_of_an_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """It has neither boot id nor claim: its heartbeats decide, also on a host of the same name."""

    def beat() -> None:
        owner = {"job_id": "7", "restart_count": 0, "host": host, "pid": 1, "heartbeat": time.time()}
        write_atomic(tmp_path / "lock.json", json.dumps(owner))

    beat()
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.01)
    with Beating(beat), pytest.raises(SetupError, match="in use by job 7"):
        Ownership(tmp_path, ("8", 0)).acquire()
    monkeypatch.setattr(ownership, "LEASE_S", 0.2)
    assert owned(tmp_path, Identity.own(), ("8", 0)).epoch == 1


def test_of_many_starts_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    """Processes of their own, over a file server that is slow at times; the last owner was killed."""
    for round_ in range(5):
        run = tmp_path / str(round_)
        owned(run, earlier(), LOCAL)
        answers = [answer for answer, _ in _started_together(run, 8)]
        assert sorted(answers) == ["owner"] + 7 * ["refused"], answers
        assert [path.name for path in (run / "owners").glob("*2.json")] == ["00000002.json"]


def _started_together(run: Path, count: int) -> Iterator[tuple[str, int]]:
    begin, end = os.pipe(), os.pipe()
    pipes, children = [], []
    for number in range(count):
        pipes.append(os.pipe())
        child = os.fork()
        if child == 0:
            _start(run, number, begin[0], pipes[-1][1], end)
        children.append(child)
    os.write(begin[1], b"." * count)
    answers = [os.read(pipe[0], 10).decode() for pipe in pipes]
    os.close(end[1])
    for child in children:
        os.waitpid(child, 0)
    for pipe in (*pipes, begin, (end[0], end[0])):
        for descriptor in {*pipe}:
            os.close(descriptor)
    yield from zip(answers, children, strict=True)


def _start(run: Path, number: int, begin: int, answer: int, end: tuple[int, int]) -> None:
    """In a child: claims the folder, reports the outcome, and lives until all have reported."""
    os.close(end[1])
    draw = random.Random(number)
    disk.current = SlowDisk(lambda: time.sleep(draw.random() * 0.01))
    os.read(begin, 1)
    try:
        Ownership(run, LOCAL).acquire()
        os.write(answer, b"owner")
    except SetupError:
        os.write(answer, b"refused")
    except BaseException as error:
        os.write(answer, type(error).__name__[:10].encode())
    os.read(end[0], 1)
    os._exit(0)


def test_an_owner_that_was_replaced_writes_and_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT_S", 1000.0)  # it was paused
    paused = earlier()
    monkeypatch.setattr(Identity, "own", lambda: paused)
    ours, theirs = Disk(), Disk()
    with using(ours):
        folder = RunFolder(tmp_path)
        folder.open(ALONE, LOCAL)
        log = Journal(folder.log)
        assert log.add("ours") is None
        (folder.checkpoints / "step-00000004").mkdir()
    monkeypatch.undo()
    monkeypatch.setattr(ownership, "HEARTBEAT_S", 1000.0)
    with using(theirs):
        other = RunFolder(tmp_path)
        other.open(ALONE, LOCAL)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with using(ours):
        for change in (
            lambda: write_atomic(folder.metrics, "x"),
            lambda: disk.current.append(folder.log, b"x"),
            lambda: disk.current.unlink(folder.log),
            lambda: disk.current.rename(folder.log, folder.metrics),
            lambda: disk.current.make_folder(folder.tensorboard),
            lambda: disk.current.remove_folder(folder.checkpoints / "step-00000004"),
            lambda: disk.current.write_with(folder.metrics, lambda path: path.write_bytes(b"x")),
            lambda: disk.current.link(folder.log, folder.metrics),
            lambda: disk.current.touch(folder.log),
        ):
            with pytest.raises(FencedOut, match="was taken over by job local"):
                change()
        assert isinstance(log.add("late"), FencedOut)
        assert folder.lost is not None
        with pytest.raises(SetupError, match="was taken over"):
            folder.raise_if_lost()
        found = folder.close(Verdict(COMPLETE, "done", 12), LOCAL, writes=True)
        assert found is not None and found.outcome == "fatal" and "taken over" in found.reason
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (folder.checkpoints / "step-00000004").is_dir()
    with using(theirs):
        assert other.close(Verdict(COMPLETE, "done", 12), LOCAL, writes=True) == Verdict(COMPLETE, "done", 12)
    assert read_verdict(tmp_path).value is not None


def test_a_folder_that_vanishes_is_not_made_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(ALONE, LOCAL)
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.raises(SetupError, match="has vanished"):
        folder.raise_if_lost()
    found = folder.close(Verdict(COMPLETE, "done", 12), LOCAL, writes=True)
    assert found is not None and found.outcome == "fatal" and "vanished" in found.reason
    assert not (tmp_path / "run").exists()


def test_trouble_with_the_disk_ends_no_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT_S", 0.005)
    folder = RunFolder(tmp_path)
    folder.open(ALONE, LOCAL)
    with using(FaultyDisk("ENOSPC", 0, lasting=True)):
        time.sleep(0.1)
    before = (tmp_path / "lock.json").read_bytes()
    deadline = time.monotonic() + 60
    while (tmp_path / "lock.json").read_bytes() == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "lock.json").read_bytes() != before
    folder.close(None, LOCAL, writes=True)
    assert capfd.readouterr().err.count("no heartbeat could be written") == 1


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLinks(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(95, "Operation not supported")

    with using(NoLinks()):
        owned(tmp_path, Identity.own())
        with pytest.raises(SetupError, match="in use"):
            Ownership(tmp_path, ("8", 0)).acquire()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").open(ALONE, LOCAL)


def test_a_verdict_that_cannot_be_written_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "VERDICT_PAUSE_S", 0.0)
    folder = RunFolder(tmp_path)
    folder.open(ALONE, LOCAL)
    with using(FaultyDisk("EROFS", 0, lasting=True, changes_only=True)):
        found = folder.close(Verdict(COMPLETE, "all steps done", 12), LOCAL, writes=True)
    assert found is not None and found.outcome == "fatal" and "Read-only file system" in found.reason


def test_which_process_lives() -> None:
    own = Identity.own()
    assert lives(own) is True and lives(earlier()) is False and lives(dead()) is False
    for unknown in ({"boot_id": "x"}, {"pid_namespace": "pid:[1]"}, {"boot_id": None}, {"started": None}):
        assert lives(dataclasses.replace(own, **unknown)) is None
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    fields = Path(f"/proc/{zombie.pid}/stat").read_text().rsplit(")", 1)[1].split()
    identity = dataclasses.replace(own, pid=zombie.pid, started=int(fields[19]))
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert lives(identity) is False, "it has ended, and nobody has looked yet"
    zombie.wait()


CONTAINER = """
import sys
from pathlib import Path
from pretrain.engine import ownership
from pretrain.errors import SetupError
ownership.LEASE_S, ownership.LOOK_EVERY_S = float(sys.argv[2]), 0.05
owner = ownership.Ownership(Path(sys.argv[1]), ("local", 0))
try:
    owner.acquire()
    print("owner", owner.identity.pid, flush=True)
except SetupError as error:
    print("refused", error, flush=True)
    raise SystemExit
while True:
    owner.beat()
    ownership.time.sleep(0.05)
"""


def _container(run: Path, lease_s: float) -> subprocess.Popen[str]:
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", CONTAINER]
    if os.geteuid():
        words[1:1] = ["--user", "--map-root-user"]
    return subprocess.Popen([*words, str(run), str(lease_s)], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_containers_in_which_python_is_process_1(tmp_path: Path) -> None:
    """Two of one host name do not take over each other's run, and that of a dead one is not refused for ever."""
    first = _container(tmp_path, 1000.0)
    assert first.stdout is not None
    line = first.stdout.readline()
    if not line:
        first.wait()
        pytest.skip("this system lets nobody make a PID namespace")
    try:
        assert line.split() == ["owner", "1"]
        second = _container(tmp_path, 1000.0)
        assert second.communicate()[0].startswith("refused")
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    third = _container(tmp_path, 0.5)
    assert third.stdout is not None
    try:
        assert third.stdout.readline().split() == ["owner", "1"]
    finally:
        third.kill()
        third.wait()
        third.stdout.close()


def test_every_byte_of_a_claim(tmp_path: Path) -> None:
    """A damaged claim names nobody, and so is watched like any other that nothing is known of."""
    owned(tmp_path, Identity.own())
    path = tmp_path / "owners/00000001.json"
    content = path.read_bytes()
    good = records.read(path, ownership.CLAIM_SHAPE, without_hash=lambda value: False).value
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        record = records.read(path, ownership.CLAIM_SHAPE, without_hash=lambda value: False)
        assert record.value == good or record.problem is not None
