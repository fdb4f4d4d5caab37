"""The common parts of the shared objects (queues, rings, locks), and their bindings."""
