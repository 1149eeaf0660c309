"""Text encoders: a file for each kind, and how a family has several of them."""
