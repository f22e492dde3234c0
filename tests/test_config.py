"""What configuration is accepted from which source, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sched.config import Config
from ray_sched.config_loading import Field, fields, load
from ray_sched.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    file = folder / "conf.yml"
    file.write_text(text)
    return file


def test_nothing_given_gives_the_defaults() -> None:
    assert load(None, {"PATH": "/bin"}, {}) == Config()


def test_every_default_is_allowed_from_every_source() -> None:
    for field in fields():
        plain = list(field.default) if isinstance(field.default, tuple) else field.default
        assert load(None, {}, {field.name: ("--flag", plain)}) == Config(), field.name
        text = ",".join(plain) if isinstance(plain, list) else str(plain)
        assert load(None, {field.variable: text}, {}) == Config(), field.name


def test_every_field_has_a_sentence() -> None:
    assert [field.name for field in fields() if not field.help.endswith(".")] == []


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "host: 127.0.5.1\nlayout: wide\nexecutor: {count: 1}\npolicy: {name: random}\n")
    environ = {"RAY_SCHED_EXECUTOR_COUNT": "2", "RAY_SCHED_POLICY_NAME": "round-robin"}
    config = load(file, environ, {"policy.name": ("--policy", "locality")})
    assert (config.host, config.layout, config.executor.count, config.policy.name) == (
        "127.0.5.1",
        "wide",
        2,
        "locality",
    )


def test_the_legacy_file_is_understood(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """\
ip: 127.0.5.2
mgmt_ip: 127.0.5.3
executor:
  scheduler_ips:
    - 127.0.5.2
    - 127.0.5.4
  thread_id: 0
scheduler:
  routing_address: 127.0.5.5
  policy: round-robin
  metric_address: 127.0.0.1
benchmark:
  cloudburst_address: 127.0.0.1
""",
    )
    config = load(file, {}, {})
    assert config.host == "127.0.5.2"
    assert config.mgmt == "127.0.5.3" and not config.local
    assert config.kvs_host == config.kvs.host == "127.0.5.5"
    assert config.policy.name == "round-robin"
    assert config.scheduler_ips == ("127.0.5.2", "127.0.5.4")


@pytest.mark.parametrize("nothing", ["NULL", "null", "'NULL'", ""])
def test_a_legacy_file_without_a_management_node_means_local_mode(tmp_path: Path, nothing: str) -> None:
    assert load(write(tmp_path, f"ip: 127.0.0.1\nmgmt_ip: {nothing}\n"), {}, {}).local


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("polcy: {name: random}", "polcy is no setting; did you mean policy?"),
        ("policy: {nmae: random}", "policy.nmae is no setting; did you mean policy.name?"),
        ("executor: {count: many}", "executor.count = 'many' is not allowed; it must be a whole number"),
        ("executor: {count: 2.5}", "executor.count = 2.5 is not allowed; it must be a whole number"),
        ("executor: {count: true}", "executor.count = True is not allowed; it must be a whole number"),
        ("executor: {count: -1}", "executor.count = -1 is not allowed; it must be at least 0"),
        ("executor: 3", "executor = 3 is not allowed; it is a section: give its settings below it"),
        ("scheduler: {lease_s: .nan}", "scheduler.lease_s = nan is not allowed; it must be a finite number"),
        (
            "scheduler: {lease_s: 1e999}",
            "scheduler.lease_s = '1e999' is not allowed; it must be a finite number",
        ),
        ("policy: {random_threshold: 1.5}", "it must be between 0 and 1"),
        (
            "policy: {overload: maybe}",
            "policy.overload = 'maybe' is not allowed; it must be one of refuse, keep-last",
        ),
        ("policy: {backoff_lone_executor: 2}", "it must be true or false"),
        (
            "scheduler: {policy: fastest}",
            "(scheduler.policy): policy.name = 'fastest' is not allowed; it must be one",
        ),
        (
            "host: 0.0.0.0",
            "host = '0.0.0.0' is not allowed; it must be an IPv4 address that others can connect to",
        ),
        ("host: '::1'", "host = '::1' is not allowed; it must be an IPv4 address"),
        ("host: no.such.host.invalid", "it must be an IPv4 address, or a name that resolves to one"),
        ("host: [127.0.0.1]", "host = ['127.0.0.1'] is not allowed; it must be a text"),
        (
            "gossip: {peers: [127.0.0.1, nowhere.invalid]}",
            "gossip.peers = ['127.0.0.1', 'nowhere.invalid'] is not",
        ),
        ("group: 'a:b'", "it must be made of letters, digits, dots, dashes and underscores"),
        ("ray_address: 'ray://127.0.0.1:10001'", "it must be HOST:PORT of the cluster's head, or auto"),
        ("kvs: {path: /no/such/folder/file}", "it must be a file in a folder that exists"),
        (
            "kvs: {path: no-such-file, host: 127.0.0.1}",
            "is not allowed; it must be empty unless kvs.host is embedded (it is 127.0.0.1)",
        ),
        (
            "executor: {gpu_count: 4}",
            "executor.gpu_count = 4 is not allowed; it must be at most executor.count, 3",
        ),
        ("scheduler: {heartbeat_s: 3}", "it must be less than scheduler.lease_s, 2"),
        ("host: 127.0.0.1\nip: 127.0.0.1", "ip and host are the same setting"),
        ("- 1", "must hold keys and values, not a list"),
        ("a: [", "cannot be read as a YAML file"),
    ],
)
def test_a_wrong_file_is_refused_with_file_field_value_and_what_is_allowed(
    tmp_path: Path, text: str, words: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {})
    assert str(caught.value).startswith(str(file))
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yml", {}, {})


def test_a_wrong_variable_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"^RAY_SCHED_EXECUTOR_COUNT: executor\.count = 'x' is not allowed"):
        load(None, {"RAY_SCHED_EXECUTOR_COUNT": "x"}, {})
    with pytest.raises(
        ConfigError, match="RAY_SCHED_EXECUTORS_COUNT is no setting; did you mean RAY_SCHED_EXECUTOR_COUNT"
    ):
        load(None, {"RAY_SCHED_EXECUTORS_COUNT": "3"}, {})


def test_a_wrong_flag_is_refused_by_its_name() -> None:
    with pytest.raises(
        ConfigError, match=r"^--executors: executor\.count = 11 .* at most 10, .* classic layout"
    ):
        load(None, {}, {"executor.count": ("--executors", 11)})
    assert (
        load(None, {}, {"executor.count": ("--executors", 11), "layout": ("--layout", "wide")}).executor.count
        == 11
    )


def test_names_become_addresses_and_files_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None, {"RAY_SCHED_HOST": "localhost", "RAY_SCHED_KVS_PATH": "kvs.db"}, {})
    assert config.host == config.kvs_host == "127.0.0.1"
    assert config.kvs.path == str(tmp_path / "kvs.db")


def test_a_list_in_a_variable_is_separated_by_commas() -> None:
    assert load(None, {"RAY_SCHED_GOSSIP_PEERS": "127.0.5.1, 127.0.5.2"}, {}).gossip.peers == (
        "127.0.5.1",
        "127.0.5.2",
    )


@given(
    # Names would be looked up.
    st.sampled_from([field for field in fields() if field.kind != "address"]),
    st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans()),
)
def test_whatever_is_given_is_taken_or_refused_by_name(field: Field, value: Any) -> None:
    try:
        load(None, {}, {field.name: ("--flag", value)})
    except ConfigError as error:
        assert field.name in str(error)
