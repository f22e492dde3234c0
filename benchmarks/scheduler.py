"""The scheduler under test: started by its command line, filled over the wire, ended by SIGINT."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final

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


def ask(ip: str, port: int, raw: bytes, timeout_s: float = REQUEST_S) -> bytes:
    """The reply to one request. Raises NoReplyError."""
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(tcp(ip, port))
    try:
        socket.send(raw)
        if not socket.poll(int(timeout_s * 1000)):
            raise NoReplyError(f"no reply from {tcp(ip, port)} within {timeout_s} s")
        return socket.recv()
    finally:
        socket.close()
        context.term()


def status_of(ip: str) -> dict[str, Any]:
    """What `ray-sched status --json` says of a group. Raises NoReplyError."""
    program = Path(sys.executable).parent / "ray-sched"
    command = [str(program), "status", "--host", ip, "--json"]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=STOP_S
    )
    if done.returncode:
        raise NoReplyError(f"no status of {ip}: {done.stderr[-500:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def ingress_counts(ip: str) -> dict[str, int]:
    """What the ingress of a group has counted. Raises NoReplyError."""
    counts: dict[str, int] = status_of(ip)["actors"]["ingress"]["counts"]
    return counts


class Scheduler:
    """A group on an address of its own, with a Ray cluster of its own, by default without executors."""

    def __init__(self, ip: str, executors: int = 0, *options: str) -> None:
        self.ip = ip
        self.command = ["ray-sched", "up", "--host", ip, "--layout", "wide", "--executors", str(executors)]
        self.command += options
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
        self.pid = self._process.pid
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
        try:
            return ask(self.ip, port, raw, timeout_s)
        except NoReplyError as error:
            raise NoReplyError(f"{error}; {self.log()}") from None

    def known(self) -> tuple[int, int, int]:
        """How many executors, DAGs and cached keys its Policy and Scheduler know of."""
        told = self.status()
        return len(told["executors"]), len(told["dags"]), told["actors"]["policy"].get("cached_keys", 0)

    def status(self) -> dict[str, Any]:
        """What `ray-sched status --json` says."""
        try:
            return status_of(self.ip)
        except NoReplyError as error:
            raise NoReplyError(f"{error}; {self.log()}") from None

    def await_executors(self, count: int) -> None:
        """Until so many have reported. Raises NoReplyError."""
        deadline = time.monotonic() + START_S
        while self.known()[0] < count:
            if time.monotonic() > deadline:
                raise NoReplyError(f"fewer than {count} executors within {START_S:g} s; {self.log()}")

    def fill(self) -> None:
        """Register the functions and create the DAGs of the loads; the executors have to be there."""
        for number in range(max(payloads.CHAINS)):
            function = cb.Function(name=payloads.function_name(number), body=b"never run")
            self.must_succeed(FUNCTION_CREATE, function.SerializeToString())
        for length in payloads.CHAINS:
            self.must_succeed(DAG_CREATE, payloads.chain(length).SerializeToString())

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

    def must_succeed(self, port: int, raw: bytes) -> None:
        deadline = time.monotonic() + REQUEST_S
        while True:
            reply = cb.GenericResponse.FromString(self.request(port, raw))
            if reply.success:
                return
            # The executors' first statuses may still be on their way.
            if reply.error != cb.NO_RESOURCES or time.monotonic() > deadline:
                raise NoReplyError(f"port {port} refused: {reply}; {self.log()}")
            time.sleep(0.1)
