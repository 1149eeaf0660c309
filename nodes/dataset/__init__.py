"""Shelf dataset: images with captions."""
