"""The scheduler under test: started by its command line, filled over the wire, ended by SIGINT."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import zmq

from benchmarks import payloads
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.ports import CONNECT, DAG_CREATE, FUNCTION_CREATE, tcp

START_S: Final = 120.0
STOP_S: Final = 60.0
REQUEST_S: Final = 20.0

ENVIRONMENT: Final = {
    # Three executors take all calls here: none of them counts as overloaded by their number.
    "RAY_SCHED_POLICY_MAX_RECENT_CALLS": "0",
    "RAY_AUTH_MODE": "disabled",
}


class NoReplyError(RuntimeError):
    """The scheduler did not answer in time."""


class Scheduler:
    """A group without executors on an address of its own, with a Ray cluster of its own."""

    def __init__(self, ip: str, *options: str) -> None:
        self.ip = ip
        self.command = ["ray-sched", "up", "--host", ip, "--executors", "0", *options]
        self._log = tempfile.NamedTemporaryFile("w+", prefix="ray-sched-bench-", suffix=".log")  # noqa: SIM115
        program = Path(sys.executable).parent / self.command[0]
        began = time.monotonic()
        self._process = subprocess.Popen(
            [str(program), *self.command[1:]],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise
        self.start_s = time.monotonic() - began
        """Seconds from the command to the first answer."""

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def request(self, port: int, raw: bytes, timeout_s: float = REQUEST_S) -> bytes:
        """The reply to one request. Raises NoReplyError."""
        context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(tcp(self.ip, port))
        try:
            socket.send(raw)
            if not socket.poll(int(timeout_s * 1000)):
                raise NoReplyError(f"no reply from {tcp(self.ip, port)} within {timeout_s} s; {self.log()}")
            return socket.recv()
        finally:
            socket.close()
            context.term()

    def fill(self) -> None:
        """Register the functions and create the DAGs of the loads; the executors have to be there."""
        for number in range(max(payloads.CHAINS)):
            function = cb.Function(name=payloads.function_name(number), body=b"never run")
            self._must_succeed(FUNCTION_CREATE, function.SerializeToString())
        for length in payloads.CHAINS:
            self._must_succeed(DAG_CREATE, payloads.chain(length).SerializeToString())

    def log(self) -> str:
        self._log.flush()
        return "it said:\n" + Path(self._log.name).read_text()[-2000:]

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            if self._process.poll() is not None:
                raise NoReplyError(
                    f"{' '.join(self.command)} ended with {self._process.returncode}; {self.log()}"
                )
            try:
                self.request(CONNECT, b"", timeout_s=1.0)
                return
            except NoReplyError:
                if time.monotonic() > deadline:
                    raise

    def _must_succeed(self, port: int, raw: bytes) -> None:
        deadline = time.monotonic() + REQUEST_S
        while True:
            reply = cb.GenericResponse.FromString(self.request(port, raw))
            if reply.success:
                return
            # The executors' first statuses may still be on their way.
            if reply.error != cb.NO_RESOURCES or time.monotonic() > deadline:
                raise NoReplyError(f"port {port} refused: {reply}; {self.log()}")
            time.sleep(0.1)
