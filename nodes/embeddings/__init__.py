"""Shelf embeddings: files of learned words."""
