"""Shelf lora stack: many LoRAs at once."""
