"""What makes an executor thread: everything but Ray."""
