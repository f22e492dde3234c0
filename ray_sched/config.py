"""The configuration: one tree of frozen dataclasses, with a default, a unit and a sentence each.

Loaded from a YAML file, the environment and the command line, in that order (the last wins): see
`ray_sched.config_loading`. `Config` alone is plain data and travels to every actor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final

from ray_sched.wire.ports import LAYOUTS, Layout

MAX_SHARDS: Final = 16


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    kind: str = "",
) -> Any:
    """A field with its sentence, and the values that it may have.

    `kind` tells what a text stands for, and so how it is checked when it is loaded: `address`, `file`,
    `folder`, `name`, `policy` or `ray address`. The default is always allowed.
    """
    allowed = {"choices": choices, "minimum": minimum, "maximum": maximum, "kind": kind}
    return field(default=default, metadata={"help": help, **allowed})


@dataclass(frozen=True)
class PolicyConfig:
    name: str = setting(
        "locality",
        "How executors are picked: random, round-robin, locality, or one of your own.",
        kind="policy",
    )
    random_threshold: float = setting(
        0.2,
        "Share of calls (0 to 1) whose executor is picked at random among all, overloaded ones too.",
        minimum=0,
        maximum=1,
    )
    overload: str = setting(
        "refuse",
        "When every candidate is overloaded: refuse with NO_RESOURCES, or keep-last.",
        choices=("refuse", "keep-last"),
    )
    backoff_lone_executor: bool = setting(
        False, "Whether the only executor of a function backs off, too, when its utilization is high."
    )
    max_utilization: float = setting(
        0.7, "Utilization (0 to 1) above which an executor backs off.", minimum=0, maximum=1
    )
    max_recent_calls: int = setting(
        1000, "Calls within window_s after which an executor counts as overloaded; 0: no limit.", minimum=0
    )
    window_s: float = setting(
        5.0, "Seconds that a backoff lasts and that recent calls are counted.", minimum=0.1
    )
    seed: int = setting(0, "Seed of the random picks; 0: a different one for each start.", minimum=0)


@dataclass(frozen=True)
class SchedulerConfig:
    lease_s: float = setting(
        2.0, "Seconds for which an ingress may decide calls after its last update.", minimum=0.1
    )
    heartbeat_s: float = setting(
        0.5, "Seconds between two updates of the dispatch table, at least.", minimum=0.05
    )
    forward_timeout_s: float = setting(
        0.5, "Seconds that a call waits for the Scheduler when the ingress may not decide it.", minimum=0.05
    )
    max_wait_s: float = setting(
        0.5,
        "Seconds that a call may wait to be decided; under overload the wait is about half of it, and what "
        "would wait longer is refused at once.",
        minimum=0.01,
    )
    max_message_bytes: int = setting(
        256 * 2**20,
        "Bytes of the largest call, function or DAG; one of up to twice as many is refused with a reason, "
        "the connection of one that sends more is closed.",
        minimum=1024,
    )
    max_control_bytes: int = setting(
        4 * 2**20,
        "The same for what is none of these: names, statuses, answers to pins, updates of other schedulers.",
        minimum=1024,
    )
    max_name_bytes: int = setting(
        1024,
        "Bytes of the longest name that a function or a DAG may have, and of keys and ids of calls.",
        minimum=64,
    )
    max_dag_functions: int = setting(1000, "Functions that one DAG may have.", minimum=1)
    max_functions: int = setting(100_000, "Functions that may be registered.", minimum=1)
    max_dags: int = setting(10_000, "DAGs that may exist.", minimum=1)
    max_executors: int = setting(
        20_000, "Executor threads that may be known at once; statuses of further ones are dropped.", minimum=1
    )
    request_timeout_s: float = setting(
        60.0, "Seconds that any other request may take before it is answered with an error.", minimum=1
    )
    table_timeout_s: float = setting(
        5.0,
        "Seconds that what has to know the executors waits for the Policy to tell of them, after a restart.",
        minimum=0.05,
    )
    result_timeout_s: float = setting(
        60.0, "Seconds that a call through the actor handle waits for its result by default.", minimum=0.1
    )
    pin_timeout_s: float = setting(10.0, "Seconds that an executor has to answer a pin.", minimum=0.05)
    demand_s: float = setting(
        60.0,
        "Seconds for which a DAG that found no room stays visible to Ray's autoscaler; 0: not at all.",
        minimum=0,
    )
    reservation_timeout_s: float = setting(
        3.0, "Seconds that Ray has to reserve a pin's room before another executor is tried.", minimum=1
    )
    reservation_check_s: float = setting(
        5.0, "Seconds between two comparisons of Ray's placement groups with the pins.", minimum=0.1
    )
    pin_grace_s: float = setting(
        1.0,
        "Seconds in which a status that lacks a fresh pin does not yet mean a restart (5 of ours, which tell "
        "of one), and a peer's word does not count against an executor's own status.",
        minimum=0,
    )
    num_replicas: int = setting(1, "Executors that each function of a DAG is pinned on.", minimum=1)
    executor_timeout_s: float = setting(
        15.0, "Seconds without a status after which an executor counts as gone.", minimum=1
    )
    lost_call_timeout_s: float = setting(
        600.0,
        "Seconds since a call for which an error value is written should its executor be found dead.",
        minimum=1,
    )
    noted_calls_bytes: int = setting(
        16 * 2**20,
        "Bytes for the list of the latest calls; one takes about 150, at least half of it is always full.",
        minimum=4096,
    )
    api_threads: int = setting(64, "Calls through the actor handle that may wait at once.", minimum=1)
    request_threads: int = setting(32, "Requests over the wire that may wait at once.", minimum=1)


@dataclass(frozen=True)
class IngressConfig:
    shards: int = setting(
        1,
        "Processes that decide calls. With more than one a proxy of ZeroMQ's takes the calls in, on the same "
        "ports, and hands them out in turn: for hosts with cores to spare.",
        minimum=1,
        maximum=MAX_SHARDS,
    )
    loop_timeout_s: float = setting(
        5.0, "Seconds that the loop has to take what another actor hands it.", minimum=0.05
    )


@dataclass(frozen=True)
class ExecutorConfig:
    count: int = setting(
        3,
        "Executors on the group's own host; 0: none there. Other nodes of the Ray cluster get as many as "
        "their resource `executor` says, each on its node's address.",
        minimum=0,
    )
    gpu_count: int = setting(0, "How many of them are GPU executors.", minimum=0)
    functions_per_executor: int = setting(
        0,
        "Functions that one executor may hold; 0: one in cluster mode, any number in local mode.",
        minimum=0,
    )
    idle_timeout_s: float = setting(
        0.0,
        "Seconds after which the executors of a node, if all are idle, leave it, so that the autoscaler can "
        "take it away; 0: they stay. Those on the group's own host stay always.",
        minimum=0,
    )
    min_count: int = setting(
        0, "Executors of the group that stay however idle, those on its own host included.", minimum=0
    )
    nodes_period_s: float = setting(
        1.0, "Seconds between two looks at the nodes of the Ray cluster, at most.", minimum=0.05
    )
    scheduler_ips: tuple[str, ...] = setting(
        (), "Schedulers that executors report to; empty: their own group's.", kind="address"
    )
    status_period_s: float = setting(5.0, "Seconds between two statuses.", minimum=0.1)
    load_timeout_s: float = setting(
        8.0,
        "Seconds that a function's import may take before its pin is refused and the executor restarts.",
        minimum=0.1,
    )
    batch_size: int = setting(20, "Requests that a batching function is handed at once, at most.", minimum=1)
    start_timeout_s: float = setting(
        60.0, "Seconds that an executor has to start before its place on a node is given up.", minimum=1
    )
    reference_timeout_s: float = setting(
        10.0, "Seconds that a call waits for the keys that its arguments refer to.", minimum=0.1
    )
    schedule_timeout_s: float = setting(
        600.0, "Seconds that a function of a DAG call waits for the functions before it.", minimum=0.1
    )
    trigger_timeout_s: float = setting(
        60.0, "Seconds that a trigger waits for the schedule that it belongs to.", minimum=0.1
    )
    depart_timeout_s: float = setting(
        30.0, "Seconds that a departing executor waits for triggers that are still to come.", minimum=0.1
    )
    depart_linger_s: float = setting(
        1.0,
        "Seconds that a departing executor takes calls that were sent before its word got about.",
        minimum=0,
    )
    reload_period_s: float = setting(
        5.0, "Seconds after which a function that was registered again takes effect, at most.", minimum=0.05
    )
    linger_ms: int = setting(
        500, "Milliseconds that what an executor has sent has to leave it when it stops.", minimum=0
    )
    runtime_dir: str = setting(
        "",
        "Absolute path of a folder for what outlives a killed process (journals, the list of recent calls, "
        "a store without a file of its own); empty: ray_sched-<user id> in the temporary folder.",
    )


@dataclass(frozen=True)
class KvsConfig:
    host: str = setting("embedded", "'embedded', or the address of an Anna routing tier.", kind="address")
    path: str = setting(
        "", "File that makes the embedded store durable; empty: it lasts as long as the group.", kind="file"
    )
    routing_ports: int = setting(
        1, "Routing threads of the Anna that is used (1 local, 4 in its cluster mode).", minimum=1
    )
    consistency: str = setting(
        "normal",
        "How functions are stored: normal (last writer wins) or causal.",
        choices=("normal", "causal"),
    )
    timeout_s: float = setting(3.0, "Seconds that one try of a request may take.", minimum=0.05)
    retries: int = setting(2, "Further tries after the first.", minimum=0)


@dataclass(frozen=True)
class GossipConfig:
    period_s: float = setting(5.0, "Seconds between two updates to the peers.", minimum=0.1)
    mgmt_timeout_s: float = setting(
        0.5, "Seconds that the management node has to name the peers.", minimum=0.05
    )
    peers: tuple[str, ...] = setting(
        (), "Addresses of further schedulers, beside those that are found.", kind="address"
    )


@dataclass(frozen=True)
class StatsConfig:
    period_s: float = setting(5.0, "Seconds between two reports of the statistics.", minimum=0.1)
    flush_s: float = setting(1.0, "Seconds between two batches from the ingress.", minimum=0.05)
    policy_period_s: float = setting(
        5.0, "Seconds between two updates of backoffs, call times and cached keys.", minimum=0.1
    )
    metrics_period_s: float = setting(
        1.0,
        "Seconds between two publications of each actor's metrics, where ray[default] is there; 0: none.",
        minimum=0,
    )


@dataclass(frozen=True)
class SecurityConfig:
    curve: str = setting(
        "",
        "Absolute path of the folder with the group's keys: nobody without a key is heard; empty: no keys.",
        kind="folder",
    )


@dataclass(frozen=True)
class Config:
    host: str = setting(
        "127.0.0.1", "IP address that the group binds and names in its messages.", kind="address"
    )
    group: str = setting("", "Name of the scheduler group; empty: its host.", kind="name")
    mgmt: str = setting("", "IP address of the management node; empty: local mode.", kind="address")
    layout: str = setting("classic", "Ports of the executors.", choices=tuple(LAYOUTS))
    ray_address: str = setting(
        "", "Address of an existing Ray cluster; empty: one is started.", kind="ray address"
    )
    start_timeout_s: float = setting(120.0, "Seconds that the whole group has to become ready.", minimum=1)
    stop_timeout_s: float = setting(
        20.0,
        "Seconds that the whole group has to stop; its actors' threads, and Ray's processes, a quarter of "
        "it. `ray-sched down` ends it by force after its own --timeout-s.",
        minimum=4,
    )
    answer_timeout_s: float = setting(
        2.0,
        "Seconds that an actor waits for another one's word, where it goes on without it; a restarted Policy "
        "for what the Ingress knows of the executors, too.",
        minimum=0.5,
    )
    ray_timeout_s: float = setting(5.0, "Seconds that a Ray cluster has to take a connection.", minimum=0.1)
    background_nice: int = setting(
        5,
        "How much Policy, StatsReporter and Gossip, whose work no call waits for, give way on busy cores, as "
        "`nice` has it; 0: not at all. With much more a busy node would keep leases from being renewed.",
        minimum=0,
        maximum=10,
    )
    log_level: str = setting(
        "INFO", "Least level of what is logged.", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )
    remembered: int = setting(
        10_000,
        "Calls, and likewise pins and runs, that each process remembers for `ray-sched why`.",
        minimum=1,
    )
    log_format: str = setting(
        "key=value", "How a line of the log is written: key=value or json.", choices=("key=value", "json")
    )
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ingress: IngressConfig = field(default_factory=IngressConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    kvs: KvsConfig = field(default_factory=KvsConfig)
    gossip: GossipConfig = field(default_factory=GossipConfig)
    stats: StatsConfig = field(default_factory=StatsConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)

    @property
    def group_name(self) -> str:
        return self.group or self.host

    @property
    def local(self) -> bool:
        """Local mode, as the legacy systems call it: no management node is known."""
        return not self.mgmt

    @property
    def ports(self) -> Layout:
        return LAYOUTS[self.layout]

    @property
    def kvs_host(self) -> str:
        """The routing tier's address: what port 5000 answers."""
        return self.host if self.kvs.host == "embedded" else self.kvs.host

    @property
    def threads_stop_timeout_s(self) -> float:
        """Seconds that a thread of an actor has to end."""
        return self.stop_timeout_s / 4

    @property
    def functions_per_executor(self) -> int:
        """How many functions one executor may hold; 0: any number."""
        return self.executor.functions_per_executor or (0 if self.local else 1)

    @property
    def scheduler_ips(self) -> tuple[str, ...]:
        return self.executor.scheduler_ips or (self.host,)

    def replace(self, **changes: Any) -> Config:
        """A copy with dotted fields changed: `config.replace(host="127.0.0.2", **{"executor.count": 0})`."""
        top: dict[str, Any] = {}
        nested: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            section, _, leaf = name.rpartition(".")
            if section:
                nested.setdefault(section, {})[leaf] = value
            else:
                top[name] = value
        for section, values in nested.items():
            top[section] = dataclasses.replace(getattr(self, section), **values)
        return dataclasses.replace(self, **top)
