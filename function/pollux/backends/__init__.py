"""Everything outside the process: the store, keys, blobs, and the Gemini API."""
