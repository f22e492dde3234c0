"""The wire protocol: generated messages, ports, and the codec between bytes and values."""
