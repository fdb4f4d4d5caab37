"""Worker processes: the basis of `Pool`, `ProcessPoolExecutor` and the backend for joblib."""
