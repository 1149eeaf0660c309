"""Shelf settings: what Train nodes take beside their own widgets."""
