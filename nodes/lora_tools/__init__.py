"""Shelf lora tools: files made out of files."""
