"""Captions as text: files, trigger words, edits, variation."""
