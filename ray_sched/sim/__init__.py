"""A cluster in simulated time, around the same core that decides in the real one.

`Scenario` says what is simulated, `simulate` (in `world`) runs it for one policy, `report` and `plot`
tell what came of it. What is played here: clients, the network, service times, caches. What is not:
tables, policies, dispatcher, peers, and the executors' queues, which are the classes of `core`.
"""
