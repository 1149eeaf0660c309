"""Tensors that are computed once and kept on disk: latents, captions, masks."""
