"""Open files are bounded by the limit of the process, over all that it reads; the error names the limit."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pretrain.data.storage.open_files import Descriptor, OpenFiles, TooManyOpenFiles, allowance
from tests.unit.data.sets import write_set

ROOT = Path(__file__).resolve().parents[4]


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("soft", "allowed"), [(20, 16), (256, 128), (1024, 512), (10**6, 2048), (-1, 2048)])
def test_the_allowance_is_half_of_the_limit(soft, allowed, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, -1))
    assert allowance() == allowed


def test_a_descriptor_closes_when_nobody_uses_it(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    before = num_descriptors()
    files: OpenFiles[Descriptor] = OpenFiles(1)
    first = files.get("a", lambda: Descriptor(tmp_path / "a"))
    files.get("b", lambda: Descriptor(tmp_path / "a"))  # pushes the first one out, which is still in use
    assert os.pread(first.number, 3, 0) == b"abc"
    assert num_descriptors() == before + 2
    del first
    assert num_descriptors() == before + 1
    files.close()
    assert num_descriptors() == before


def test_a_file_that_is_not_there_costs_nothing(tmp_path):
    files: OpenFiles[Descriptor] = OpenFiles(1)
    with pytest.raises(FileNotFoundError):
        files.get("a", lambda: Descriptor(tmp_path / "a"))
    assert len(files) == 0


READ_ALL = """
    import json, os, resource, sys
    from pretrain.data.workers.reader import ShardReader
    from pretrain.data.storage.index import ShardTable
    from pretrain.errors import UserError
    folder, limit, taken = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    readers = [ShardReader(ShardTable.load(folder)) for _ in range(4)]
    readers[0].read(0)  # what is imported late is imported before
    readers[0].store.close()
    readers[0] = ShardReader(readers[0].table)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    held, most = [], 0
    while len(held) < taken:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    try:
        for turn in range(2):
            for sample_id in range(readers[0].table.num_samples):
                for reader in readers:
                    assert reader.read(sample_id).labels
                try:
                    most = max(most, len(os.listdir("/proc/self/fd")))
                except OSError:
                    pass
    except UserError as error:
        for number in held:
            os.close(number)
        print(json.dumps([type(error).__name__, str(error)]))
    else:
        print(json.dumps(["", most]))
"""


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("many") / "train", [1] * 70)


def read_all(folder: Path, limit: int, taken: int) -> list[str]:
    code = [sys.executable, "-c", textwrap.dedent(READ_ALL), str(folder), str(limit), str(taken)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_four_sets_of_many_shards_are_read_under_a_small_limit(many_shards):
    """560 files in all, and at most 32 of 64 descriptors for them."""
    problem, most = read_all(many_shards, 64, 0)
    assert problem == ""
    assert int(most) <= 64


def test_a_process_without_descriptors_says_so(many_shards):
    problem, message = read_all(many_shards, 64, 10_000)
    assert problem == TooManyOpenFiles.__name__
    assert "too many open files, this process may have 64 (ulimit -n). Raise the limit" in message
    assert "Pack" not in message
