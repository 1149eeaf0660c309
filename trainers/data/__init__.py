"""Pictures and captions on the way to the loop: manifest, captions, buckets, pictures, caches, batches."""
