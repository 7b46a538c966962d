"""Files that a shell command prints. The only place of the training that starts programs; off unless allowed."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from pretrain.data.location import Location
from pretrain.data.transport import PIECE_BYTES, TransportError, gathered


class PipeTransport:
    """See ``Transport``. A command that fails, stalls or prints too little is tried again.

    Args:
        location: the command, with ``{name}`` and perhaps ``{start}`` and ``{end}`` in it.
        timeout_s: the longest time without a byte.
    """

    def __init__(self, location: Location, *, timeout_s: float) -> None:
        self.location, self.timeout_s = location, timeout_s
        self.ranged = "{start}" in location.base

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """See ``Transport.get``."""
        assert size is None or self.ranged, "this command prints whole files"
        return gathered(self._run(self._command(name, start, size)), size, self.timeout_s)

    def pieces(self, name: str) -> Iterator[bytes]:
        """See ``Transport.pieces``."""
        yield from self._run(self._command(name, 0, None))

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """See ``Transport.sizes``: a command does not tell."""
        return iter(())

    def _command(self, name: str, start: int, size: int | None) -> str:
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
        last = time.monotonic()
        while True:
            ready, _, _ = select.select([file], [], [], self.timeout_s)
            if not ready:
                raise TransportError(f"the command printed nothing for {time.monotonic() - last:.0f} s")
            piece = os.read(file.fileno(), PIECE_BYTES)
            if not piece:
                return
            last = time.monotonic()
            yield piece


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2000))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it printed no error"
