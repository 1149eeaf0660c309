"""Images on the way to the latents: reading, buckets, masks, variants."""
