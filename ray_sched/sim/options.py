"""The options of `ray-sched sim`: one for each field of a scenario, and what `--vary` and `--set` mean."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from ray_sched.config import Config
from ray_sched.errors import ConfigError
from ray_sched.sim.scenario import Scenario

_F = TypeVar("_F", bound=Callable[..., Any])

Load = Callable[[dict[str, tuple[str, Any]]], Config]
"""The configuration with some fields given: dotted name to the flag's name and its value."""


@dataclass(frozen=True)
class Case:
    """One scenario under one configuration, whose policy is still open; `value` of what is varied."""

    value: str
    scenario: Scenario
    config: Config


def scenario_options(command: _F) -> _F:
    """A click option for each field of a scenario, in their order."""
    for field in reversed(dataclasses.fields(Scenario)):
        command = click.option(
            _flag(field.name),
            default=field.default,
            show_default=field.default != "",
            type=_type(field),
            metavar="|".join(field.metadata["choices"]) or _METAVARS[type(field.default)],
            help=field.metadata["help"],
        )(command)
    return command


class SimulationCommand(click.Command):
    """Shows a scenario's options by what they are about, after the command's own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for name, record in records.items():
            section = _SECTIONS.get(name or "", next(reversed(sections)) if name in _NAMES else "Options")
            if record is not None:
                sections.setdefault(section, []).append(record)
        for title, shown in sections.items():
            with formatter.section(title):
                formatter.write_dl(shown)


_METAVARS = {int: "N", float: "X", str: "FILE"}
_NAMES = {field.name for field in dataclasses.fields(Scenario)}
_SECTIONS = {
    "executors": "The cluster",
    "call": "The functions and their calls",
    "references": "Keys and caches",
    "network_ms": "What things cost",
    "duration_s": "The simulation",
}
"""The first field of each section; further ones follow it."""


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _type(field: dataclasses.Field[Any]) -> click.ParamType[Any]:
    allowed = field.metadata
    kind = typing.get_type_hints(Scenario)[field.name]
    if allowed["choices"]:
        return click.Choice(allowed["choices"])
    if kind is int:
        return click.IntRange(allowed["minimum"], allowed["maximum"])
    if kind is float:
        return click.FloatRange(allowed["minimum"], allowed["maximum"])
    return click.STRING


def cases(given: dict[str, Any], settings: tuple[str, ...], vary: str, load: Load) -> tuple[str, list[Case]]:
    """What is varied (empty: nothing), and what to simulate for each of its values.

    Args:
        given: the scenario's fields.
        settings: `NAME=VALUE`, fields of the configuration.
        vary: `NAME=VALUE,VALUE,...`, a field of either; or empty.
        load: gives the configuration.

    Raises ConfigError.
    """
    fields: dict[str, tuple[str, Any]] = {}
    for setting in settings:
        name, value = _pair("--set", setting)
        if name in given:
            raise ConfigError(f"--set: {name} is of the scenario: give it as {_flag(name)}")
        fields[name] = ("--set", value)
    if not vary:
        return "", [Case("", Scenario(**given), load(fields))]
    name, values = _pair("--vary", vary)
    name = name.removeprefix("--")
    scenario_name = name.replace("-", "_")
    made = []
    for value in (text.strip() for text in values.split(",")):
        if scenario_name in given:
            changed = given | {scenario_name: _converted(scenario_name, value)}
            made.append(Case(value, Scenario(**changed), load(fields)))
        elif "." in name:
            made.append(Case(value, Scenario(**given), load(fields | {name: ("--vary", value)})))
        else:
            close = difflib.get_close_matches(scenario_name, given, n=1)
            hint = f"did you mean {close[0]}?" if close else "see --help"
            raise ConfigError(f"--vary: {name} is neither of the scenario nor a setting; {hint}")
    for case in made:
        case.scenario.check()
    return name, made


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ConfigError(f"{flag}: {text!r} is not allowed; it must be NAME=VALUE")
    return name.strip(), value.strip()


def _converted(name: str, value: str) -> Any:
    field = next(field for field in dataclasses.fields(Scenario) if field.name == name)
    try:
        return _type(field).convert(value, None, None)
    except click.BadParameter as error:
        raise ConfigError(f"--vary: {name} = {value!r} is not allowed: {error.message}") from None
