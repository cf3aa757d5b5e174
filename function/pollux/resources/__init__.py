"""What one project owns (files, caches, batches, …), made to work over the whole pool."""
