"""Loop, step, state, optimizer, checkpoints, metrics."""
