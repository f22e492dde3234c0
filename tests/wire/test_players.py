"""The players themselves: their protobuf is protobuf, and they play what they are told."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.players import (
    AnnaClient,
    Mailbox,
    MalformedError,
    NoReplyError,
    NothingCameError,
    PlayedAnna,
    PlayedExecutor,
    PlayedManagement,
    Pusher,
    Verdict,
    decode,
    encode,
    messages,
    ports,
)
from tests.wire.players.client import LegacyClient
from tests.wire.players.protobuf import Field, Schema

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())["messages"]
IP = "127.0.6.90"


@pytest.fixture
def pusher() -> Iterator[Pusher]:
    pusher = Pusher()
    yield pusher
    pusher.close()


def plain(field: Field, value: Any) -> Any:
    """A field of a vector (JSON as protobuf writes it) as a record holds it."""
    if field.mapped:
        inner = Field(field.name, field.kind, field.schema)
        return {key: plain(inner, item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(field, item) for item in value]
    if field.schema is not None:
        return filled(field.schema, value)
    if field.kind == "bytes":
        return base64.b64decode(value)
    if field.kind == "uint":
        return getattr(messages, value) if str(value).isidentifier() else int(value)
    return value


def filled(schema: Schema, fields: dict[str, Any]) -> dict[str, Any]:
    empty = decode(schema, b"")
    return empty | {
        field.name: plain(field, fields[field.name])
        for field in schema.fields.values()
        if field.name in fields
    }


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vectors_are_read_and_written_by_hand(vector: dict[str, Any]) -> None:
    schema = messages.SCHEMAS[vector["message"]]
    record = decode(schema, bytes.fromhex(vector["hex"]))
    assert record == filled(schema, vector["fields"])
    assert encode(schema, record).hex() == vector["hex"]


@given(st.binary(max_size=60), st.sampled_from(sorted(messages.SCHEMAS)))
def test_any_bytes_parse_or_are_called_malformed(raw: bytes, name: str) -> None:
    try:
        decode(messages.SCHEMAS[name], raw)
    except MalformedError:
        pass


def test_unknown_fields_are_kept() -> None:
    raw = encode(messages.DAG_CALL, {"name": "d", "client_id": "c"})
    record = decode(messages.FUNCTION, raw)
    assert record.unknown_fields == [(6, 2, b"c")]
    assert encode(messages.FUNCTION, record) == raw


def test_a_field_that_no_schema_has_is_refused() -> None:
    with pytest.raises(KeyError, match="FunctionCall has no field"):
        encode(messages.FUNCTION_CALL, {"nome": "f"})


def test_players_import_nothing_of_the_scheduler() -> None:
    code = "import sys, tests.wire.players; print([m for m in sys.modules if m.startswith('ray')])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "[]"


def test_waiting_ends_with_what_did_come() -> None:
    with Mailbox({"a": f"tcp://{IP}:0"}) as mailbox, pytest.raises(NothingCameError, match="1 fitting a"):
        mailbox.wait_for("a", timeout_s=0.01)


def test_a_taken_address_is_named() -> None:
    with Mailbox({"a": f"tcp://{IP}:0"}) as mailbox, pytest.raises(OSError, match=f"tcp://{IP}"):
        Mailbox({"b": mailbox.address["a"]})


def test_a_play_that_fails_fails_the_test() -> None:
    pusher = Pusher()
    executor = PlayedExecutor(IP, 0, IP, pusher)
    pusher.push(ports.tcp(IP, ports.CLASSIC.pin), b"\xff")
    with pytest.raises(MalformedError):
        executor.wait_for("pin", timeout_s=5)
    with pytest.raises(MalformedError):
        executor.close()
    pusher.close()


@pytest.mark.parametrize("layout", ports.LAYOUTS)
def test_an_executor_answers_pins_as_it_is_told(pusher: Pusher, layout: str) -> None:
    bases = ports.LAYOUTS[layout]
    verdicts = iter([Verdict.ACCEPT, Verdict.REJECT, Verdict.HOLD, Verdict.IGNORE])
    scheduler_ip = "127.0.6.91"
    pin = encode(messages.PIN_FUNCTION, {"name": "f", "response_address": scheduler_ip})
    with (
        Mailbox(
            {
                "answer": ports.tcp(scheduler_ip, ports.PIN_ACCEPT),
                "status": ports.tcp(scheduler_ip, ports.STATUS),
            }
        ) as scheduler,
        PlayedExecutor(
            IP, 3, scheduler_ip, pusher, layout=bases, verdict=lambda pin: next(verdicts)
        ) as executor,
    ):
        for _ in range(4):
            pusher.push(ports.tcp(IP, bases.pin + 3), pin)
        executor.wait_for("pin", 4)
        answers = [decode(messages.GENERIC_RESPONSE, raw) for raw in scheduler.wait_for("answer", 2)]
        assert [answer.success for answer in answers] == [True, False]
        assert executor.answer_held() == 1
        assert executor.answer_held() == 0
        late = scheduler.wait_for("answer", 3)[2]
        assert decode(messages.GENERIC_RESPONSE, late) == {"success": True, "response_id": "", "error": 0}

        pusher.push(ports.tcp(IP, bases.unpin + 3), b"f")
        statuses = [decode(messages.THREAD_STATUS, raw) for raw in scheduler.wait_for("status", 4)]
        assert [status.functions for status in statuses] == [["f"], ["f"], ["f"], []]
        assert {(status.ip, status.tid, status.running) for status in statuses} == {(IP, 3, True)}


def test_a_client_gets_no_reply_and_asks_again() -> None:
    answers = itertools.cycle([b"127.0.0.1"])
    with LegacyClient(IP, timeout_s=0.05) as client:
        with pytest.raises(NoReplyError, match="5000"):
            client.connect()
        patient = LegacyClient(IP, timeout_s=10)
        with Mailbox(
            {"connect": ports.tcp(IP, ports.CONNECT)},
            lambda kind, raw: next(answers),
            replies=frozenset({"connect"}),
        ):
            assert patient.connect() == "127.0.0.1"
        patient.close()


def test_a_management_node_names_the_schedulers() -> None:
    management = PlayedManagement("127.0.6.92", ["10.0.0.1", "10.0.0.2"])
    client = LegacyClient("127.0.6.92", timeout_s=5)
    reply = client.request(ports.MGMT_SCHEDULERS, b"")
    assert decode(messages.STRING_SET, reply)["keys"] == ["10.0.0.1", "10.0.0.2"]
    client.close()
    management.close()


def test_anna_by_hand_from_both_ends(pusher: Pusher) -> None:
    anna = PlayedAnna("127.0.6.93", pusher)
    client = AnnaClient("127.0.6.93", "127.0.6.94", pusher, timeout_s=5)
    assert client.addresses("k") == ["tcp://127.0.6.93:6200"]
    assert client.get("k").error == messages.KEY_DNE
    written = encode(messages.LWW_VALUE, {"timestamp": 10, "value": b"v"})
    assert client.put("k", messages.LWW, written).error == messages.NO_ERROR
    assert client.wait_for_lww("k") == b"v"
    for member in (b"a", b"b"):
        client.put("s", messages.SET, encode(messages.SET_VALUE, {"values": [member]}))
    assert decode(messages.SET_VALUE, client.get("s").payload)["values"] == [b"a", b"b"]
    client.close()
    anna.close()


def test_an_executor_that_left_is_silent(pusher: Pusher) -> None:
    scheduler_ip = "127.0.6.95"
    with (
        Mailbox({"status": ports.tcp(scheduler_ip, ports.STATUS)}) as scheduler,
        PlayedExecutor("127.0.6.96", 0, scheduler_ip, pusher) as executor,
    ):
        executor.report(functions=["f"])
        executor.report(running=False)
        pusher.push(ports.tcp("127.0.6.96", ports.CLASSIC.unpin), b"f")
        executor.wait_for("unpin")
        executor.report(utilization=0.5)
        statuses = [decode(messages.THREAD_STATUS, raw) for raw in scheduler.wait_for("status", 3)]
        assert [(status.running, status.utilization) for status in statuses] == [
            (True, 0.0),
            (False, 0.0),
            (True, 0.5),
        ]
