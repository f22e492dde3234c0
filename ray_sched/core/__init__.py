"""The decisions, without any I/O: events in, effects out.

Rule 1: nothing below this package imports ray, zmq, a clock or a source of randomness.
Time is an argument (`now`, seconds of a monotonic clock, unless a name says `unix`), and so
is the random generator. That is what lets the same code run in an actor, in Ray's local
mode, in a unit test and in a simulation.
"""
