"""Shelf base model: what is trained."""
