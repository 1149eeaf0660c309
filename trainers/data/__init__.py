"""Images and captions on the way to the loop: manifest, captions, buckets, images, what varies per step,
caches, batches."""
