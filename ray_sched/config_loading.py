"""Where the configuration comes from: a YAML file, the environment, flags; and what is allowed.

A later source wins. Whatever is wrong is refused with where it came from, the field, the value and what is
allowed. Files may use the legacy systems' keys for what both know (see `_LEGACY`).
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import logging
import math
import os
import socket
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import yaml

from ray_sched import processes
from ray_sched.config import Config
from ray_sched.errors import ConfigError

log = logging.getLogger(__name__)

POLICY_GROUP: Final = "ray_sched.policies"
ENVIRONMENT_PREFIX: Final = "RAY_SCHED_"
NOT_SETTINGS: Final = frozenset({"RAY_SCHED_STATE_DIR", processes.MARK})
"""Variables that begin like a setting's and are none."""

_LEGACY: Final = {
    "ip": "host",
    "mgmt_ip": "mgmt",
    "scheduler.routing_address": "kvs.host",
    "scheduler.policy": "policy.name",
}
_LEGACY_IGNORED: Final = ("executor.thread_id", "scheduler.metric_address", "benchmark")
"""Keys that legacy files have and that mean nothing here."""

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")


@dataclass(frozen=True)
class Field:
    """One setting: its dotted name, its type and what it may be."""

    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    kind: str

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.replace(".", "_").upper()


@dataclass(frozen=True)
class _Given:
    value: Any
    source: str


def load(file: str | Path | None, environ: Mapping[str, str], flags: Mapping[str, tuple[str, Any]]) -> Config:
    """The configuration that these give together, checked.

    Args:
        file: a YAML file, or None.
        environ: variables, of which those that begin with RAY_SCHED_ count.
        flags: the field's dotted name to the flag's own name and value, such as
            `{"executor.count": ("--executors", 3)}`.

    Raises:
        ConfigError: something is not allowed; the message names source, field, value and what is.
    """
    known = {field.name: field for field in fields()}
    given = {**_from_file(file, known), **_from_environment(environ, known)}
    for name, (flag, _) in flags.items():
        if name not in known:
            raise ConfigError(f"{flag}: {name} is no setting{_nearest(name, known)}")
    given |= {name: _Given(value, flag) for name, (flag, value) in flags.items()}
    config = Config().replace(**{name: _convert(known[name], item) for name, item in given.items()})
    _check_together(config, given)
    return config


def fields() -> Iterator[Field]:
    """Every setting there is."""
    yield from _fields(Config, "")


def _fields(tree: type[Any], prefix: str) -> Iterator[Field]:
    types = typing.get_type_hints(tree)
    for field in dataclasses.fields(tree):
        if dataclasses.is_dataclass(types[field.name]):
            yield from _fields(types[field.name], f"{prefix}{field.name}.")
        else:
            yield Field(prefix + field.name, types[field.name], field.default, **field.metadata)


def _from_file(file: str | Path | None, known: Mapping[str, Field]) -> dict[str, _Given]:
    if file is None:
        return {}
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        words = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"{file}: cannot be read as a YAML file: {words}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must hold keys and values, not a {type(content).__name__}")
    sections = {name.partition(".")[0] for name in known if "." in name}
    given: dict[str, _Given] = {}
    for key, value in _flatten(content, sections):
        name = _LEGACY.get(key, key)
        if key in _LEGACY_IGNORED:
            log.info("%s: %s means nothing here and is ignored", file, key)
        elif name in sections:
            words = "it is a section: give its settings below it"
            raise ConfigError(f"{file}: {key} = {value!r} is not allowed; {words}")
        elif name not in known:
            raise ConfigError(f"{file}: {key} is no setting{_nearest(key, {*known, *sections, *_LEGACY})}")
        elif name in given and key in _LEGACY:
            raise ConfigError(f"{file}: {key} and {name} are the same setting; give one of them")
        elif value is None or (key == "mgmt_ip" and value == "NULL"):
            given[name] = _Given(known[name].default, str(file))
        else:
            given[name] = _Given(value, f"{file} ({key})" if key != name else str(file))
    return given


def _flatten(content: Mapping[Any, Any], sections: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if key in sections and isinstance(value, dict):
            yield from ((f"{key}.{leaf}", inner) for leaf, inner in value.items())
        elif key in sections and value is None:
            continue
        else:
            yield str(key), value


def _from_environment(environ: Mapping[str, str], known: Mapping[str, Field]) -> dict[str, _Given]:
    by_variable = {field.variable: field for field in known.values()}
    given = {}
    for variable, value in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in NOT_SETTINGS:
            continue
        if variable not in by_variable:
            raise ConfigError(f"environment: {variable} is no setting{_nearest(variable, by_variable)}")
        given[by_variable[variable].name] = _Given(value, variable)
    return given


def _nearest(wrong: str, right: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(right), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(sorted(right))}"


def _convert(field: Field, given: _Given) -> Any:
    try:
        value = _typed(field.type, given.value)
        if value == field.default:
            return value
        if isinstance(value, tuple):
            return tuple(_checked(field, item) for item in value)
        return _checked(field, value)
    except ValueError as error:
        raise _refusal(given, field.name, given.value, str(error)) from None


def _refusal(given: _Given, name: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"{given.source}: {name} = {value!r} is not allowed; it must be {allowed}")


def _typed(kind: Any, value: Any) -> Any:
    """The value as that type; a ValueError says what it should have been."""
    if kind is str:
        if isinstance(value, (dict, list, bool)):
            raise ValueError("a text")
        return str(value).strip()
    if kind is bool:
        text = str(value).strip().lower()
        if text not in _TRUE + _FALSE:
            raise ValueError("true or false")
        return text in _TRUE
    if kind is int:
        if isinstance(value, (bool, float)):
            raise ValueError("a whole number")
        return _number(int, value, "a whole number")
    if kind is float:
        if isinstance(value, bool):
            raise ValueError("a number")
        return _number(float, value, "a number")
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise ValueError("a list")
    return tuple(text for item in items if (text := _typed(str, item)))


def _number(kind: type[int] | type[float], value: Any, allowed: str) -> int | float:
    try:
        number = kind(value)
        finite = math.isfinite(number)
    except (TypeError, ValueError):
        raise ValueError(allowed) from None
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError("a finite number")
    return number


def _checked(field: Field, value: Any) -> Any:
    """The value as it is used; a ValueError says what is allowed."""
    if field.choices and value not in field.choices:
        raise ValueError(f"one of {', '.join(field.choices)}")
    low, high = field.minimum, field.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"between {low:g} and {high:g}" if high is not None else f"at least {low:g}")
    match field.kind:
        case "address":
            return address(value)
        case "file":
            return _file(value)
        case "folder":
            return os.path.abspath(os.path.expanduser(value))
        case "policy":
            policies = sorted(point.name for point in entry_points(group=POLICY_GROUP))
            if value not in policies:
                raise ValueError(f"one of {', '.join(policies)}")
        case "name":
            if not all(c.isalnum() or c in "._-" for c in value):
                raise ValueError("made of letters, digits, dots, dashes and underscores")
        case "ray address":
            host, _, port = value.rpartition(":")
            if value != "auto" and not (host and "/" not in host and port.isdigit()):
                raise ValueError("HOST:PORT of the cluster's head, or auto")
    return value


def address(value: str) -> str:
    """The IPv4 address that a name or an address stands for; a ValueError says what is allowed."""
    if value == "localhost":
        return "127.0.0.1"
    try:
        ip = ipaddress.ip_address(value)
    except ValueError:
        try:
            return socket.gethostbyname(value)
        except (OSError, UnicodeError):
            raise ValueError("an IPv4 address, or a name that resolves to one") from None
    if ip.version != 4 or ip.is_unspecified or ip.is_multicast:
        raise ValueError("an IPv4 address that others can connect to")
    return str(ip)


def _file(value: str) -> str:
    # Actors have a working directory of their own.
    path = Path(os.path.abspath(os.path.expanduser(value)))
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError("a file in a folder that exists")
    return str(path)


def _check_together(config: Config, given: Mapping[str, _Given]) -> None:
    """What is allowed for each field alone may clash."""
    executor, layout = config.executor, config.ports

    def refuse(names: Iterable[str], value: Any, allowed: str) -> None:
        name = next((name for name in names if name in given), next(iter(names)))
        raise _refusal(given.get(name, _Given(None, "default")), name, value, allowed)

    if executor.count > layout.threads:
        room = f"at most {layout.threads}, what one address has room for in the {layout.name} layout"
        refuse(["executor.count"], executor.count, room)
    if executor.gpu_count > executor.count:
        refuse(["executor.gpu_count"], executor.gpu_count, f"at most executor.count, {executor.count}")
    if config.security.curve and config.kvs.host != "embedded":
        refuse(["security.curve"], config.security.curve, "empty with an Anna, which knows no keys")
    if config.kvs.path and config.kvs.host != "embedded":
        refuse(["kvs.path"], config.kvs.path, f"empty unless kvs.host is embedded (it is {config.kvs.host})")
    if config.scheduler.heartbeat_s >= config.scheduler.lease_s:
        longest = f"less than scheduler.lease_s, {config.scheduler.lease_s:g}"
        refuse(["scheduler.heartbeat_s"], config.scheduler.heartbeat_s, longest)
