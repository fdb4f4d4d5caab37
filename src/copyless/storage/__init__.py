"""Where bytes live and who keeps them alive: settings, the storage directory, the open store, handles, reaping."""
