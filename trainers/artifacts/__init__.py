"""The files that other programs load: names, layouts, metadata."""
