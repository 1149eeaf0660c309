"""Pictures and captions on the way to the loop: manifest, captions, buckets, pictures, what varies per step,
caches, batches."""
