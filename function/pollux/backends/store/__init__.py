"""Stores for counters and other small documents: memory, SQLite, Firestore."""
