"""The key-value store: lattices, a store, a server and a client of Anna's protocol."""
