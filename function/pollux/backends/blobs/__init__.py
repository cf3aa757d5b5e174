"""Stores for the contents of pooled files: a folder or a Cloud Storage bucket."""
