"""A scheduler made of the core's own parts, with played clients, executors, peers and store around it.

The parts are put together as the actors put them together; only who calls whom across processes,
and waiting, is left out. What would go to somebody is a line of text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from ray_sched.config import Config
from ray_sched.core.arrivals import Arrivals, PeriodStatistics
from ray_sched.core.destination import Destination
from ray_sched.core.dispatch import CALL, SCHEDULE, Dispatched, Dispatcher, seq_at
from ray_sched.core.executor import Address, Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.peers import Peers, locations_in, status_message
from ray_sched.core.pinning import Pinning
from ray_sched.core.pins import Effect, Finished, SendPin, SendUnpin, answer_name, pin_requests
from ray_sched.core.policies import Policy
from ray_sched.core.policies.locality import LocalityPolicy
from ray_sched.core.policies.random import RandomPolicy
from ray_sched.core.policies.round_robin import RoundRobinPolicy
from ray_sched.core.registry import Registry
from ray_sched.errors import NoResourcesError, RaySchedError
from ray_sched.messages import check_consistency
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import refusal
from tests.scenarios.language import (
    Ids,
    Words,
    address,
    address_text,
    dag,
    dag_call,
    schedule_text,
    values,
    values_text,
)

HOST = "10.0.0.100"
STEP_S = 0.5
"""How often time passes for the core in `later`: the heartbeat."""

POLICIES: dict[str, Callable[[Any], Policy]] = {
    "random": RandomPolicy,
    "round-robin": RoundRobinPolicy,
    "locality": LocalityPolicy,
}


class SchedulerWorld:
    def __init__(self) -> None:
        self.now = 100.0
        self._output: list[str] = []
        self._configure({}, local=False, willing=True)

    def command(self, line: str) -> list[str]:
        """Carry out one line of a transcript; returns what it led to."""
        verb, *words = line.split()
        self._output = []
        getattr(self, f"_do_{verb.replace('-', '_')}")([self._ids.lengthen(word) for word in words])
        self._table.validate()
        self._pinning.validate()
        return [self._ids.shorten(text) for text in self._output]

    # --- the parts ---

    def _configure(self, changes: dict[str, Any], *, local: bool, willing: bool) -> None:
        config = Config().replace(
            host=HOST, mgmt="" if local else "10.0.0.200", **{"policy.random_threshold": 0.0, **changes}
        )
        self._config = config
        self._ids = Ids()
        self._willing = willing
        """Whether the played executors do at once as they are told, and say so."""
        self._held: dict[Address, list[str]] = {}
        self._gpus: set[Address] = set()
        self._silent: set[Address] = set()
        self._orders: list[SendPin | SendUnpin] = []
        """What willing executors have not done yet."""
        self._unanswered: list[SendPin] = []
        self._creating: dict[str, tuple[cb.Dag, int]] = {}
        self._continuations: dict[str, cb.Continuation] = {}
        self._rng = random.Random(config.policy.seed)
        self._registry = Registry()
        self._arrivals = Arrivals()
        self._statistics = PeriodStatistics()
        self._peers = Peers(config.host)
        self._table = ExecutorTable(
            config.policy,
            local=config.local,
            pin_grace_s=config.scheduler.pin_grace_s,
            executor_timeout_s=config.scheduler.executor_timeout_s,
        )
        self._pinning = self._new_pinning()
        self._dispatcher = Dispatcher(
            self._table,
            self._registry.plans(),
            POLICIES[config.policy.name](config.policy),
            self._rng,
            self._arrivals,
        )

    def _new_pinning(self) -> Pinning:
        return Pinning(
            self._table,
            self._rng,
            functions_per_executor=self._config.functions_per_executor,
            local=self._config.local,
            pin_timeout_s=self._config.scheduler.pin_timeout_s,
            settle_s=self._config.scheduler.pin_grace_s,
        )

    def _do_config(self, words: list[str]) -> None:
        given = Words(words)
        local = {"yes": True, "no": False}[given.take("local", "no")]
        willing = {"obey": True, "wait": False}[given.take("executors", "obey")]
        changes: dict[str, Any] = {}
        for option in list(given.options):
            path, kind = _setting("policy.name" if option == "policy" else option)
            changes[path] = kind(given.take(option)) if kind is not bool else given.take(option) == "yes"
        given.finish()
        self._configure(changes, local=local, willing=willing)

    # --- executors ---

    def _do_executors(self, words: list[str]) -> None:
        gpu = "gpu" in words
        for word in words:
            if word != "gpu":
                self._do_status([word, "gpu"] if gpu else [word])

    def _do_status(self, words: list[str]) -> None:
        given = Words(words)
        executor = address(given.plain.pop(0))
        gpu = given.flag("gpu")
        utilization = float(given.take("utilization", "0"))
        functions, given.plain = given.plain, []
        given.finish()
        self._held[executor] = list(functions)
        self._gpus.discard(executor)
        if gpu:
            self._gpus.add(executor)
        self._silent.discard(executor)
        self._report(executor, utilization)

    def _report(self, executor: Address, utilization: float = 0.0) -> None:
        functions = tuple(self._held[executor])
        status = Status(*executor, functions, utilization, True, executor in self._gpus)
        self._table.on_status(status, self.now, seq_at(self.now))
        self._carry_out(self._pinning.on_status(executor, functions, self.now))

    def _do_gone(self, words: list[str]) -> None:
        """They say themselves that they leave."""
        for executor in map(address, words):
            known = executor in self._table.executors
            self._table.on_status(Status(*executor, running=False), self.now, seq_at(self.now))
            self._forget_executor(executor)
            if known:
                self._carry_out(self._pinning.on_gone(executor, self.now))

    def _do_silence(self, words: list[str]) -> None:
        self._silent.update(map(address, words))

    def _do_unreachable(self, words: list[str]) -> None:
        for executor in map(address, words):
            self._table.suspect(executor)

    def _do_report(self, words: list[str]) -> None:
        """These executors, or all, tell what they hold."""
        for executor in map(address, words) if words else list(self._held):
            self._report(executor)

    def _do_answer(self, words: list[str]) -> None:
        """The executor whose pin waits longest answers it, or the one that is given."""
        given = Words(words)
        accepts, named = given.flag("accept"), given.flag("named")
        if not accepts and not given.flag("reject"):
            raise ValueError("either accept or reject")
        whose = [address(word) for word in given.plain]
        given.plain.clear()
        given.finish()
        pin = next((pin for pin in self._unanswered if not whose or pin.address in whose), None)
        if pin is None:
            raise ValueError("nobody there was asked for a pin")
        self._unanswered.remove(pin)
        if accepts and pin.function not in self._held[pin.address]:
            self._held[pin.address].append(pin.function)
        self._say(f"{address_text(pin.address)} {'accepts' if accepts else 'rejects'} {pin.function}")
        name = answer_name(pin.address, pin.function) if named else ""
        self._carry_out(self._pinning.on_answer(accepts, name, self.now))

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendPin(executor, function, batching):
                    self._say(f"{address_text(executor)} <- pin {function}{' batching' if batching else ''}")
                    self._orders.append(effect)
                case SendUnpin(executor, function):
                    self._say(f"{address_text(executor)} <- unpin {function}")
                    self._orders.append(effect)
                case Finished():
                    self._on_finished(effect)
        orders, self._orders = self._orders, []
        for order in orders:
            self._obey(order)

    def _obey(self, order: SendPin | SendUnpin) -> None:
        """Unwilling executors unpin without a word, and answer pins when the transcript says so."""
        held = self._held.get(order.address)
        if held is None:
            return
        if isinstance(order, SendUnpin):
            if order.function in held:
                held.remove(order.function)
        elif not self._willing:
            self._unanswered.append(order)
        else:
            held += [order.function] if order.function not in held else []
            name = answer_name(order.address, order.function)
            self._carry_out(self._pinning.on_answer(True, name, self.now))
        if self._willing:
            self._report(order.address)

    def _forget_executor(self, executor: Address) -> None:
        self._held.pop(executor, None)
        self._unanswered = [pin for pin in self._unanswered if pin.address != executor]

    # --- time ---

    def _do_later(self, words: list[str]) -> None:
        """Executors that are not silent go on to say what they said last."""
        (word,) = words
        start, until = self.now, self.now + float(word.removesuffix("s"))
        while self.now < until:
            self.now = min(self.now + STEP_S, until)
            self._table.on_seen(
                [executor for executor in self._held if executor not in self._silent], self.now
            )
            before = len(self._output)
            self._tick()
            self._output[before:] = [
                f"after {self.now - start:g} s: {text}" for text in self._output[before:]
            ]

    def _do_stall(self, words: list[str]) -> None:
        """This process stands still, and everything comes to it late."""
        (word,) = words
        self.now += float(word.removesuffix("s"))
        self._tick()

    def _do_restart(self, words: list[str]) -> None:
        """Whoever pins has died and begins again: what executors say is known, and which DAGs exist."""
        self._pinning = self._new_pinning()
        self._do_reconcile(words)

    def _do_reconcile(self, words: list[str]) -> None:
        dags = {name: pin_requests(*own) for name, own in self._registry.own_dags().items()}
        creating = self._registry.in_change()
        self._carry_out(self._pinning.reconcile(dags, creating, self.now, self.now))

    def _tick(self) -> None:
        self._carry_out(self._pinning.tick(self.now))
        self._table.age(self.now)
        for executor in self._table.remove_silent(self.now, STEP_S):
            self._say(f"{address_text(executor)} is silent and counts as gone")
            self._forget_executor(executor)
            self._carry_out(self._pinning.on_gone(executor, self.now, silent=True))

    # --- functions and DAGs ---

    def _do_register(self, words: list[str]) -> None:
        for word in words:
            self._registry.add_function(word)

    def _do_list(self, words: list[str]) -> None:
        self._say(f"client <- {' '.join(self._registry.functions(*words))}")

    def _do_create(self, words: list[str]) -> None:
        given = Words(words)
        replicas = int(given.take("replicas") or self._config.scheduler.num_replicas)
        message = dag(given)
        given.finish()
        try:
            self._registry.begin_create(message)
        except RaySchedError as error:
            self._refuse(error)
            return
        self._creating[message.name] = (message, replicas)
        self._carry_out(self._pinning.create(message.name, pin_requests(message, replicas), self.now)[1])

    def _on_finished(self, finished: Finished) -> None:
        message, replicas = self._creating.pop(finished.dag)
        if finished.reason:
            self._registry.abort(finished.dag)
            self._refuse(NoResourcesError(f"DAG {finished.dag!r} was not created: {finished.reason}"))
            return
        self._registry.commit(message, replicas)
        self._peers.created(finished.dag)
        self._say(f"client <- success, DAG {finished.dag} exists")

    def _do_delete(self, words: list[str]) -> None:
        (name,) = words
        try:
            self._registry.begin_delete(name)
        except RaySchedError as error:
            self._refuse(error)
            return
        self._registry.remove(name)
        self._arrivals.forget_dag(name)
        self._peers.deleted(name)
        self._carry_out(self._pinning.release(name, self.now))
        self._registry.end_delete(name)
        self._say("client <- success")

    # --- calls ---

    def _do_one_shot(self, words: list[str]) -> None:
        given = Words(words)
        locations = given.listed("storage")
        call = cb.FunctionCall(
            name=given.plain.pop(0),
            response_key=given.take("key"),
            consistency=check_consistency(given.take("consistency", "normal")),
            locations=locations,
            source_hint=cb.STORAGE if locations else cb.CLIENT,
        )
        call.arguments.values.extend(values(",".join(given.plain)))
        given.plain.clear()
        given.finish()
        try:
            dispatched = self._dispatcher.call(call, self.now)
        except RaySchedError as error:
            if not locations:
                self._refuse(error)
            else:  # the storage tier waits for no reply
                self._say(f"dropped: {error}")
            return
        self._send(dispatched)
        if not locations:
            self._say(f"client <- success {dispatched[0]}")

    def _do_call(self, words: list[str]) -> None:
        try:
            dispatched = self._dispatcher.call_dag(dag_call(words), self.now, self.now)
        except RaySchedError as error:
            self._refuse(error)
            return
        self._send(dispatched)
        self._say(f"client <- success {dispatched[0]}")

    def _do_place(self, words: list[str]) -> None:
        """`place 3 pipeline f=1`: so many calls, and of each only where its functions run."""
        times, *call = words
        for _ in range(int(times)):
            before = len(self._output)
            self._do_call(call)
            for text in self._output[before:]:
                if text.startswith("  each schedule"):
                    self._output[before:] = [" ".join(word for word in text.split() if "@" in word)]

    def _do_done(self, words: list[str]) -> None:
        """The sink of a call (of the last one, where no id is given) is done with a result.

        Its executor sends the continuation that its schedule had.
        """
        *given, result = words
        call_id = given[0] if given else list(self._continuations)[-1]
        continuation = self._continuations.pop(call_id)
        continuation.id = call_id
        continuation.result = values(result)[0].SerializeToString(deterministic=True)
        try:
            dispatched = self._dispatcher.continue_dag(continuation, self.now, self.now)
        except RaySchedError as error:
            to = Destination.of_continuation(continuation)
            place = to.address or f"key {to.key}{f', causal, by {to.writer}' if to.causal else ''}"
            self._say(f"{place} <- {_code(error)}: {error}")
            self._say("dropped: continuation")
            return
        self._send(dispatched)

    def _send(self, dispatched: Dispatched) -> None:
        schedules: list[cb.DagSchedule] = []
        for executor, kind, message in dispatched[1]:
            if kind == CALL:
                self._say(f"{executor.name} <- {_call_text(cb.FunctionCall.FromString(message))}")
                continue
            if kind == SCHEDULE:
                schedule = cb.DagSchedule.FromString(message)
                schedules.append(schedule)
                triggers = " ".join(schedule.triggers)
                self._say(f"{executor.name} <- schedule {schedule.target_function} after {triggers}")
                continue
            trigger = cb.DagTrigger.FromString(message)
            self._say(
                f"{executor.name} <- trigger {trigger.target_function} from {trigger.source} {trigger.id}"
            )
        if schedules:
            (common,) = {schedule_text(schedule) for schedule in schedules}
            self._say(f"  each schedule: {common}")
            if schedules[0].continuation.name:
                self._continuations[schedules[0].id] = schedules[0].continuation

    # --- the store and the peers ---

    def _do_cached(self, words: list[str]) -> None:
        ip, *keys = words
        self._table.cached_keys.set(ip, keys)

    def _do_peers(self, words: list[str]) -> None:
        self._peers.found(words)

    def _do_gossip(self, words: list[str]) -> None:
        """A peer tells which DAGs it knows and where functions are: `dags=a,b f@10.0.0.1:0`.

        A group of ours tells what it deleted, too.
        """
        given = Words(words)
        from_group = given.flag("group")
        dags, deleted = given.listed("dags"), given.listed("deleted")
        places = [word.split("@") for word in given.plain]
        given.plain.clear()
        given.finish()
        message = status_message(dags, [(function, address(place)) for function, place in places])
        for name in self._peers.deleted_elsewhere(deleted, message.dags) if from_group else ():
            if self._registry.has_dag(name) and not self._registry.is_own(name):
                self._registry.remove(name)
                self._say(f"DAG {name} is forgotten")
        self._table.merge_locations(locations_in(message), self.now)
        for name in self._peers.to_learn(message.dags, self._registry.dags()):
            self._say(f"store <- read DAG {name}")

    def _do_stored(self, words: list[str]) -> None:
        """The store answers with a DAG."""
        given = Words(words)
        message = dag(given)
        given.finish()
        try:
            self._registry.begin_create(message, lambda function: True)
        except RaySchedError as error:
            self._say(f"not learned: {error}")
            return
        self._registry.commit(message)
        self._say(f"DAG {message.name} is learned")

    def _do_tell(self, words: list[str]) -> None:
        """The period is over: all peers are told."""
        message = status_message(self._registry.dags(), self._table.told_locations())
        places = [f"{function}@{address_text(executor)}" for function, executor in locations_in(message)]
        told = " ".join([f"dags={','.join(message.dags)}", *places])
        deleted = ",".join(self._peers.recently_deleted())
        for host in self._peers.hosts():
            self._say(f"{host} <- {told}")
        if deleted:
            self._say(f"our own groups, too <- deleted={deleted}")

    def _do_statistics(self, words: list[str]) -> None:
        """The period is over: what the management node is told."""
        batch = self._arrivals.take()
        if batch is not None:
            self._statistics.add(batch)
        report = self._statistics.report()
        for function in report.functions:
            self._say(f"management <- function {function.name} call_count={function.call_count}")
        for called in report.dags:
            gaps = ",".join(f"{gap:g}" for gap in called.interarrival)
            self._say(f"management <- DAG {called.name} call_count={called.call_count} interarrival={gaps}")

    # --- looking ---

    def _do_show(self, words: list[str]) -> None:
        pinned: dict[tuple[Address, str], list[str]] = {}
        for dag_name, pins in self._pinning.pins.items():
            for pin in pins:
                pinned.setdefault((pin.address, pin.function), []).append(dag_name)
        for executor, known in sorted(self._table.executors.items()):
            functions = [
                f"{function} ({','.join(sorted(pinned.get((executor, function), ['no DAG of ours'])))})"
                for function in sorted(known.functions)
            ]
            words = ["free" if known.free else "not free", *(["GPU"] if known.gpu else [])]
            words += ["overloaded"] if known.overloaded else []
            words += [f"holds {', '.join(functions)}"] if functions else []
            self._say(f"{known.name}: {', '.join(words)}")
        self._say(f"DAGs: {' '.join(sorted(self._registry.dags())) or 'none'}")
        for dag_name, missing in self._pinning.missing().items():
            self._say(f"DAG {dag_name} misses {' '.join(missing)}")
        if self._pinning.late_answers:
            self._say(f"pin answers that counted for nobody: {self._pinning.late_answers}")

    def _refuse(self, error: RaySchedError) -> None:
        self._say(f"client <- {_code(error)}: {error}")

    def _say(self, text: str) -> None:
        self._output.append(text)


def _code(error: RaySchedError) -> str:
    return cb.CloudburstError.Name(cb.GenericResponse.FromString(refusal(error).body).error)


def _call_text(call: cb.FunctionCall) -> str:
    words = ["call", call.name, values_text(call.arguments.values), f"key={call.response_key}"]
    words += [f"consistency={cb.ConsistencyType.Name(call.consistency).lower()}"] if call.consistency else []
    return " ".join(word for word in words if word)


def _setting(option: str) -> tuple[str, type]:
    """A setting's path in the configuration, and its type, by its own name alone."""
    section, _, leaf = option.rpartition(".")
    for part in ("policy", "scheduler", "executor"):
        for field in fields(getattr(Config(), part)):
            if field.name == leaf and section in ("", part):
                return f"{part}.{leaf}", type(field.default)
    raise ValueError(f"no setting {option!r}")
