"""The Ray actors: thin shells around `ray_sched.core`, and the group that starts them."""
