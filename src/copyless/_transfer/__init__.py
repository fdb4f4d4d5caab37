"""How a value becomes bytes that another process can load, and how it becomes a value again."""
