"""Training: state, losses, stages, optimizer, step, metrics and the one loop."""
