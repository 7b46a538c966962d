"""``python -m pipelines.k8s.node -- COMMAND``: the first process of a pod. Starts one rank for each GPU of the node.

Signals go on to the ranks, which save and leave. The pod ends with the code of the rank that failed first, which the
rules of the manifest understand.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from pretrain.command_line import Parser
from pretrain.distributed.watchdog import EXIT_HUNG
from pretrain.engine.run_folder import COMPLETE, EXIT_CODES, REQUEUE
from pretrain.names import tell

LOOK_S = 0.1
IN_ORDER = (EXIT_CODES[COMPLETE], EXIT_CODES[REQUEUE])  # a rank that leaves so does not hold up the others


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the ranks to their end; returns the exit code of the pod."""
    args = _parser().parse_args(argv)
    node = Node(args.stop_s)
    signal.signal(signal.SIGTERM, node.on_signal)
    signal.signal(signal.SIGINT, node.on_signal)
    index = int(os.environ["JOB_COMPLETION_INDEX"])  # of a Job whose completionMode is Indexed
    host = os.environ["MASTER_ADDR"]
    tell(f"pod {socket.gethostname()}, node {index} of {args.nodes}, is on {os.environ.get('NODE_NAME', '?')}")
    if not _has_address(host, args.start_s, node):
        tell(f"error: the name of the first pod, {host}, has no address after {args.start_s:g} s", file=sys.stderr)
        return EXIT_HUNG
    if node.is_stopping:
        return EXIT_CODES[REQUEUE]
    for local_rank in range(args.ranks):
        variables = {
            "RANK": index * args.ranks + local_rank,
            "WORLD_SIZE": args.nodes * args.ranks,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": args.ranks,
        }
        node.start([sys.executable, "-u", *args.command], {name: str(value) for name, value in variables.items()})
    return node.until_the_end()


class Node:
    """The ranks of one pod.

    Args:
        stop_s: seconds that the others get to end once one has failed.
    """

    def __init__(self, stop_s: float) -> None:
        self.is_stopping = False
        self._stop_s, self._ranks = stop_s, list[subprocess.Popen[bytes]]()

    def start(self, command: Sequence[str], variables: dict[str, str]) -> None:
        """Starts one rank."""
        self._ranks.append(subprocess.Popen(command, env={**os.environ, **variables}))
        if self.is_stopping:  # the signal came in between
            self._ranks[-1].send_signal(signal.SIGTERM)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Kubernetes ends the pod: the ranks save, and leave."""
        self.is_stopping = True
        self._send(signal.SIGTERM)

    def until_the_end(self) -> int:
        """Waits for all ranks; returns the code of the first that failed, or else 0."""
        code, deadline = 0, float("inf")
        while [rank for rank in self._ranks if rank.poll() is None]:  # asks each of them
            code = code or self._first_code()
            if code not in IN_ORDER and deadline == float("inf"):
                deadline = time.monotonic() + self._stop_s
                self._send(signal.SIGTERM)
            if time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            time.sleep(LOOK_S)
        return code or self._first_code()

    def _first_code(self) -> int:
        """The code of a rank that ended with one that is not 0; as in a shell, 128 and the signal if it was killed."""
        codes = [rank.returncode for rank in self._ranks if rank.returncode]
        return next((code if code > 0 else 128 - code for code in codes), 0)

    def _send(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(number)


def _has_address(host: str, limit_s: float, node: Node) -> bool:
    """Waits until a name has an address, which the first pod gets when it is scheduled, or the pod is to stop."""
    deadline = time.monotonic() + limit_s
    while not node.is_stopping:
        try:
            socket.getaddrinfo(host, None)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)
    return True


def _parser() -> Parser:
    parser = Parser(prog="python -m pipelines.k8s.node", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True, help="pods of the job")
    parser.add_argument("--ranks", type=int, required=True, help="ranks of this pod")
    parser.add_argument("--start-s", type=float, required=True, help="seconds to wait for the first pod's address")
    parser.add_argument("--stop-s", type=float, default=30.0, help="for the others once a rank has failed (30)")
    parser.add_argument("command", nargs="+", help="arguments of Python, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
