"""Shelf embeddings: files of learnt words."""
