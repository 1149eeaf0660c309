"""Shelf captions: written by models or by people."""
