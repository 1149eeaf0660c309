"""Shelf train: a node for every method."""
