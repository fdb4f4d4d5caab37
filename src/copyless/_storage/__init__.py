"""Where bytes live and what keeps them alive: settings, the storage directory, the open store, user files, sockets."""
