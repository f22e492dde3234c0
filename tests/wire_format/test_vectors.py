"""Recorded messages of the legacy systems parse, mean what they say, and serialize to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from ray_sched.wire import anna_pb2, cloudburst_pb2, internal_pb2, shared_pb2

VECTORS = json.loads((Path(__file__).parents[1] / "wire" / "vectors.json").read_text())["messages"]
MODULES = {
    "anna.proto": anna_pb2,
    "cloudburst.proto": cloudburst_pb2,
    "internal.proto": internal_pb2,
    "shared.proto": shared_pb2,
}


def message_class(vector: dict[str, Any]) -> type[Message]:
    found: type[Message] = getattr(MODULES[vector["file"]], vector["message"])
    return found


def by_name(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def has_unknown_fields(message: Message) -> bool:
    """Whether parsing left bytes aside, here or in any message inside: they would come back unread."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    return copy.SerializeToString(deterministic=True) != message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("vector", VECTORS, ids=by_name)
def test_parses_to_the_recorded_fields(vector: dict[str, Any]) -> None:
    message = message_class(vector).FromString(bytes.fromhex(vector["hex"]))
    assert json_format.MessageToDict(message, preserving_proto_field_name=True) == vector["fields"]
    assert not has_unknown_fields(message)


@pytest.mark.parametrize("vector", VECTORS, ids=by_name)
def test_serializes_again_to_the_same_bytes(vector: dict[str, Any]) -> None:
    message = message_class(vector).FromString(bytes.fromhex(vector["hex"]))
    assert message.SerializeToString(deterministic=True).hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS, ids=by_name)
def test_is_built_from_its_fields_to_the_same_bytes(vector: dict[str, Any]) -> None:
    message = json_format.ParseDict(vector["fields"], message_class(vector)())
    assert message.SerializeToString(deterministic=True).hex() == vector["hex"]


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_descriptors_live_in_a_package_of_our_own(module: Any) -> None:
    # Without one, two libraries that speak this protocol could not be loaded into the same process.
    assert module.DESCRIPTOR.package == "ray_sched.wire"
