"""Files that a shell command prints. The only place of the training that starts programs; off unless allowed."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from pretrain.data.storage.location import Location
from pretrain.data.storage.shard_names import check_name_for_shell
from pretrain.data.storage.transport import LARGEST_ANSWER, PIECE_BYTES, TransportError, bounded, gathered, paced
from pretrain.names import printable


class PipeTransport:
    """See ``Transport``. A command that fails, stalls or prints too little is tried again.

    Args:
        location: the command, with ``{name}`` and perhaps ``{start}`` and ``{end}`` in it.
        timeout_s: the longest time without a byte, and for each 4 MiB.
    """

    def __init__(self, location: Location, *, timeout_s: float) -> None:
        self.location, self.timeout_s = location, timeout_s
        self.ranged = "{start}" in location.base

    def get(self, name: str, start: int = 0, size: int | None = None, *, most_bytes: int | None = None) -> bytes:
        """See ``Transport.get``."""
        assert size is None or self.ranged, "this command prints files, not parts of them"
        return gathered(self._pieces(name, start, size, most_bytes), size, self.timeout_s)

    def pieces(self, name: str, *, most_bytes: int | None = None) -> Iterator[bytes]:
        """See ``Transport.pieces``."""
        return paced(self._pieces(name, 0, None, most_bytes), self.timeout_s)

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """See ``Transport.sizes``: a command does not tell."""
        return iter(())

    def _pieces(self, name: str, start: int, size: int | None, most_bytes: int | None) -> Iterator[bytes]:
        output = self._run(self._command(name, start, size))
        return bounded(output, size or most_bytes or LARGEST_ANSWER, self.location.url(name))

    def _command(self, name: str, start: int, size: int | None) -> str:
        check_name_for_shell(name, str(self.location))
        end = "" if size is None else str(start + size - 1)
        command = self.location.base.replace("{name}", shlex.quote(name))
        return command.replace("{start}", str(start)).replace("{end}", end)

    def _run(self, command: str) -> Iterator[bytes]:
        bash = shutil.which("bash")  # it alone can tell that an earlier command of a pipe failed
        words = [bash, "-o", "pipefail", "-c", command] if bash else ["sh", "-c", command]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
            assert process.stdout is not None
            try:
                yield from self._output(process.stdout)
                code = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired as error:
                raise TransportError(f"the command did not end within {self.timeout_s:g} s") from error
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # it and what it started; a session of its own
                process.stdout.close()
                process.wait()
            if code:
                raise TransportError(f"the command ended with {code}: {_last_line(errors)}")

    def _output(self, file: IO[bytes]) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:  # unlike select, it takes descriptors of any number
            selector.register(file, selectors.EVENT_READ)
            while True:
                if not selector.select(self.timeout_s):
                    raise TransportError(f"the command printed nothing for {self.timeout_s:g} s")
                piece = os.read(file.fileno(), PIECE_BYTES)
                if not piece:
                    return
                yield piece


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2000))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return printable(lines[-1][:200]) if lines else "it printed no error"
