"""API keys and client tokens, in local files or in Secret Manager."""
