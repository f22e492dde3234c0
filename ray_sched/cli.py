"""The command line: `ray-sched up`, `down`, `status`, `call`, `dag call`, `sim`.

Nothing but click and the configuration is imported before a command needs it: help and calls are quick.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ray_sched import config_loading
from ray_sched.config import Config
from ray_sched.errors import RaySchedError
from ray_sched.sim.options import SimulationCommand, cases, scenario_options
from ray_sched.wire.ports import LAYOUTS

_F = TypeVar("_F", bound=Callable[..., Any])

_FLAGS: Final = {
    "host": ("host", "--host"),
    "executors": ("executor.count", "--executors"),
    "policy": ("policy.name", "--policy"),
    "kvs": ("kvs.host", "--kvs"),
    "kvs_path": ("kvs.path", "--kvs-path"),
    "mgmt": ("mgmt", "--mgmt"),
    "layout": ("layout", "--layout"),
    "address": ("ray_address", "--address"),
}
"""The field that each flag sets."""
_NO_FACTS: Final = ("role", "pid")
_CONNECT_S: Final = 5.0

_host = click.option("--host", metavar="HOST", help="Address of the group.  [default: 127.0.0.1]")
_address = click.option(
    "--address", metavar="HOST:PORT", help="The Ray cluster, where it is not the group's own."
)
_keys = click.option(
    "--keys",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="This client's keys, where the group admits their holders alone.",
)
_timeout = click.option(
    "--timeout-s", type=click.FloatRange(min=0.01), default=30.0, show_default=True, help="For the result."
)


def _plain_errors(command: _F) -> _F:
    """One line on stderr instead of a traceback: exit code 2 for a value that is not allowed, else 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from ray_sched.holder import exit_code

        try:
            return command(*args, **kwargs)
        except RaySchedError as error:
            _fail(str(error), exit_code(error))

    return run  # type: ignore[return-value]


def _fail(words: str, code: int = 1) -> None:
    click.echo(f"ray-sched: {words}", err=True)
    sys.exit(code)


def _load(file: str | None = None, **flags: Any) -> Config:
    given = {_FLAGS[name][0]: (_FLAGS[name][1], value) for name, value in flags.items() if value is not None}
    return config_loading.load(file, os.environ, given)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ray-sched")
def main() -> None:
    """A drop-in scheduler for the Cloudburst functions-as-a-service system, built from Ray actors."""


@main.command()
@click.option(
    "--host", metavar="HOST", help="IP address to bind and to name in messages.  [default: 127.0.0.1]"
)
@click.option(
    "--executors", metavar="N", help="Executors to start; 0: they come over the wire.  [default: 3]"
)
@click.option(
    "--policy", metavar="NAME", help="random, round-robin, locality or your own.  [default: locality]"
)
@click.option("--kvs", metavar="embedded|HOST", help="The key-value store: ours, or an Anna's routing tier.")
@click.option("--kvs-path", metavar="FILE", help="Keep the embedded store in this file.")
@click.option("--mgmt", metavar="HOST", help="The management node; without one: local mode.")
@click.option("--layout", metavar="|".join(LAYOUTS), help="The executors' ports.  [default: classic]")
@click.option("--address", metavar="HOST:PORT", help="An existing Ray cluster; else one is started.")
@click.option("--config", "file", metavar="FILE", help="YAML file; understands the legacy keys, too.")
@click.option("--detach", is_flag=True, help="Return when everything is ready, and leave it running.")
@_plain_errors
def up(file: str | None, detach: bool, **flags: Any) -> None:
    """Start the scheduler group, the key-value store and executors on this machine.

    Every other setting has a key in the file and a variable RAY_SCHED_<SECTION>_<FIELD>; flags win over
    variables, which win over the file. Ctrl-C stops everything; a second one does so at once.
    """
    from ray_sched import starting

    config = _load(file, **flags)
    sys.exit(starting.start(config, _Screen(config, detach).show, detach))


class _Screen:
    """What `up` prints."""

    def __init__(self, config: Config, detached: bool) -> None:
        self._detached = detached
        self._is_open = not (config.security.curve or config.host.startswith("127."))
        self._host = config.host
        self._keys = config.security.curve

    def show(self, event: Mapping[str, Any]) -> None:
        if "part" in event:
            if self._is_open:
                click.echo(
                    f"ray-sched: warning: whoever reaches {self._host} can run code here: set "
                    "security.curve, or let a firewall close its ports (docs/security.md)",
                    err=True,
                )
                self._is_open = False  # once is enough
            facts = event["facts"] or {}
            shown = "  ".join(f"{key} {value}" for key, value in facts.items() if _is_shown(key, value))
            click.echo(f"  {event['part']:<20} ready {event['seconds']:6.1f} s   {shown}".rstrip())
        elif "ready" in event:
            self._next_steps(str(event["ready"]))
        elif "stopping" in event:
            click.echo("Stopping everything ...")
        else:
            click.echo(f"ray-sched: {event['error']}", err=True)

    def _next_steps(self, host: str) -> None:
        command, python = _as_typed("ray-sched"), _as_typed("python3")
        where = "" if host == "127.0.0.1" else f" --host {host}"
        to = f"'{host}', keys='{self._keys}/clients/NAME'" if self._keys else f"'{host}'"
        with_keys = f" --keys {self._keys}/clients/NAME" if self._keys else ""
        click.echo(
            f"""
The scheduler group on {host} is ready. Next{"" if self._detached else ", in another terminal"}:

  {python} -c "import ray_sched; c = ray_sched.connect({to}); c.register(lambda _, x: x + 1, 'incr')"
  {command} call incr 41{where}{with_keys}
  {command} status{where}

{"Stop it with:" if self._detached else "Stop it with Ctrl-C, or:"} {command} down{where}"""
        )


def _is_shown(key: str, value: Any) -> bool:
    return key not in _NO_FACTS and value not in ("", None)


def _as_typed(name: str) -> str:
    """How a command of this Python environment is typed so that it is found."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    return name if shutil.which(name) == path else path


@main.command()
@_host
@_address
@click.option(
    "--timeout-s", type=click.FloatRange(min=1), default=60.0, show_default=True, help="For a clean stop."
)
@_plain_errors
def down(host: str | None, address: str | None, timeout_s: float) -> None:
    """Stop the group on a host, and all that `up` started with it."""
    from ray_sched import stopping

    config = _load(host=host, address=address)
    was_there = stopping.stop(config, timeout_s)
    state = "is stopped" if was_there else "was gone already; its address is free again"
    click.echo(f"The scheduler group on {config.host} {state}.")


@main.command()
@_host
@_address
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@_plain_errors
def status(host: str | None, address: str | None, as_json: bool) -> None:
    """Show the group's actors, executors with what they hold, DAGs, and counts."""
    from ray_sched import group_status

    config = _load(host=host, address=address)
    told = group_status.read(config)
    click.echo(json.dumps(told, default=str) if as_json else group_status.as_tables(told))


@main.command()
@click.argument("name")
@_host
@_address
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@_plain_errors
def why(name: str, host: str | None, address: str | None, as_json: bool) -> None:
    """Tell what became of a call or a pin.

    NAME is the id of a call or the key of its result, a DAG, a function, or an executor as IP:THREAD.
    """
    from ray_sched import story

    told = story.read(_load(host=host, address=address), name)
    click.echo(json.dumps(told) if as_json else story.as_text(told))


@main.group()
def keys() -> None:
    """Keys that admit clients, where security.curve is used."""


@keys.command("new")
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    metavar="FOLDER",
    default="keys",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The group's folder of keys.",
)
@_plain_errors
def keys_new(name: str, folder: Path) -> None:
    """Make the keys of a client, and the group's own where the folder has none yet."""
    from ray_sched import keys as making

    handed = making.new(name, folder)
    click.echo(
        f"""{name} is admitted by a group that has security.curve: {folder.absolute()}
Move {handed} to where {name} is, and connect with keys={handed.name!r} (or --keys {handed.name}).
To refuse {name} from then on, remove {folder / "clients" / f"{name}.key"}."""
    )


@main.command()
@click.argument("name")
@click.argument("args", nargs=-1)
@_host
@_keys
@_timeout
@_plain_errors
def call(name: str, args: Sequence[str], host: str | None, keys: Path | None, timeout_s: float) -> None:
    """Call a registered function, and print its result.

    ARGS are Python literals (41, 'text', [1, 2]); what is none is text. A negative number goes after `--`.
    """
    import ray_sched

    with ray_sched.connect(_load(host=host).host, timeout_s=min(timeout_s, _CONNECT_S), keys=keys) as client:
        _print_result(client.function(name)(*map(_value, args)).get(timeout_s=timeout_s))


@main.group()
def dag() -> None:
    """Work with DAGs of functions."""


@dag.command("call")
@click.argument("name")
@click.option(
    "--arg", "args", multiple=True, metavar="FUNCTION=VALUE", help="An argument of a source function."
)
@click.option(
    "--direct", is_flag=True, help="Have the result sent here, instead of through the key-value store."
)
@_host
@_keys
@_timeout
@_plain_errors
def dag_call(
    name: str, args: Sequence[str], direct: bool, host: str | None, keys: Path | None, timeout_s: float
) -> None:
    """Call a DAG, and print its result.

    --arg may be given several times, also for one function. VALUE is a Python literal; what is none is text.
    """
    import ray_sched

    arguments: dict[str, list[Any]] = {}
    for pair in args:
        function, equals, text = pair.partition("=")
        if not equals or not function:
            _fail(f"--arg: {pair!r} is not allowed; it must be FUNCTION=VALUE", 2)
        arguments.setdefault(function, []).append(_value(text))
    with ray_sched.connect(_load(host=host).host, timeout_s=min(timeout_s, _CONNECT_S), keys=keys) as client:
        _print_result(client.call_dag(name, arguments, direct_response=direct).get(timeout_s=timeout_s))


@main.command(cls=SimulationCommand)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    help="A policy to compare; may be given several times.  [default: all that are installed]",
)
@click.option("--vary", default="", metavar="NAME=V1,V2,...", help="Simulate each of these values, too.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the real cluster, such as gossip.period_s=1; may be given several times.",
)
@click.option("--config", "file", metavar="FILE", help="YAML file with settings, as for `up`.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write all figures there.")
@click.option("--plot", metavar="FILE.png|FILE.svg", help="Draw them there; needs the extra `sim`.")
@scenario_options
@_plain_errors
def sim(
    policies: tuple[str, ...],
    vary: str,
    settings: tuple[str, ...],
    file: str | None,
    csv_file: str | None,
    plot: str | None,
    **scenario: Any,
) -> None:
    """Compare policies in simulated time: latency, utilization, cache hits and refusals.

    The real tables, policies and queues run in a simulated cluster of any size: nothing is started,
    and a minute there takes seconds. docs/simulation.md says what is simulated and how far to trust it.

    \b
    ray-sched sim
    ray-sched sim --references 2 --skew 1.2 --plot sim.png --csv sim.csv
    ray-sched sim --vary load=0.3,0.5,0.7,0.9 --plot load.svg
    ray-sched sim --schedulers 4 --statuses all --vary gossip.period_s=1,5,20
    """
    from ray_sched.core.policies import policy_names
    from ray_sched.sim import plot as plotting
    from ray_sched.sim import report
    from ray_sched.sim.world import simulate

    names = list(dict.fromkeys(policies)) or policy_names()

    def load(fields: dict[str, tuple[str, Any]]) -> Config:
        return config_loading.load(file, os.environ, fields)

    for name in names:
        load({"policy.name": ("--policy", name)})
    varied, to_run = cases(scenario, settings, vary, load)
    if plot:
        plotting.check_plot(plot)
    title = report.heading([case.scenario for case in to_run])
    width = max(12, *map(len, names))
    click.echo(f"{title}\n\n{report.header(varied, width)}")
    runs = []
    for case in to_run:
        for name in names:
            outcome = simulate(case.scenario, case.config.replace(**{"policy.name": name}))
            runs.append(report.Run(name, case.value, outcome))
            click.echo(report.line(runs[-1], varied, width))
    if csv_file:
        report.write_csv(csv_file, runs, varied)
    if plot:
        plotting.write_plot(plot, runs, varied, title)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _print_result(result: Any) -> None:
    click.echo(result if isinstance(result, str) else repr(result))


if __name__ == "__main__":
    main()
