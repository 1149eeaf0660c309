"""A training run in the worker process: data, loop, previews, checkpoints."""
