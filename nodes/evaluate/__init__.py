"""Shelf evaluate: what a model is asked to show."""
