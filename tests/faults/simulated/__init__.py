"""A group of the core's own parts under one virtual clock, with faults between them that a seed gives."""
