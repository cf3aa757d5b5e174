"""Makes what one project owns (files, caches, batches, …) usable over the whole pool."""
