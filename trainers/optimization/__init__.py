"""Optimizers, their learning rates, and the mean of the weights."""
