"""What peers tell and are told."""

from __future__ import annotations

from ray_sched.core.peers import Peers, locations_in, status_message

A, B = ("10.0.0.1", 0), ("10.0.0.2", 3)


def test_our_own_address_is_no_peer() -> None:
    peers = Peers("10.0.0.1")
    peers.found(["10.0.0.2", "10.0.0.1", "", "10.0.0.2"])
    assert peers.hosts() == ("10.0.0.2",)


def test_a_peer_that_is_gone_is_told_no_more() -> None:
    peers = Peers("10.0.0.1")
    peers.found(["10.0.0.2", "10.0.0.3"])
    peers.found(["10.0.0.3"])
    assert peers.hosts() == ("10.0.0.3",)


def test_unknown_dags_are_looked_up_but_not_those_that_were_deleted_here() -> None:
    peers = Peers("10.0.0.1")
    peers.deleted("gone")
    assert peers.to_learn(["known", "gone", "new", ""], ["known"]) == ["new"]
    peers.created("gone")
    assert peers.to_learn(["gone"], []) == ["gone"]


def test_what_a_peer_deleted_is_forgotten_unless_it_is_our_own_or_exists_anew() -> None:
    peers = Peers("10.0.0.1")
    peers.created("ours")
    assert peers.deleted_elsewhere(["ours", "theirs", "anew"], ["anew"]) == ["theirs"]
    assert peers.to_learn(["theirs", "anew"], []) == ["anew"]
    assert peers.deleted_elsewhere([], ["theirs"]) == []
    assert peers.to_learn(["theirs"], []) == ["theirs"]


def test_peers_are_told_of_our_own_deletions_alone() -> None:
    peers = Peers("10.0.0.1")
    peers.deleted("ours")
    peers.deleted_elsewhere(["theirs"], [])
    assert peers.recently_deleted() == ["ours"]
    peers.created("ours")
    assert peers.recently_deleted() == []


def test_status_messages_round_trip() -> None:
    message = status_message(["b", "a"], [("g", B), ("f", A)])
    assert list(message.dags) == ["a", "b"]
    assert locations_in(message) == [("f", A), ("g", B)]
