"""Pooled files: received here, kept for as long as Google keeps a file, and copied to whatever project serves a request
that names them.

For its client a file is one thing, the file of the project that took it first. What is kept of it lies in the blob
store; where its copies are, in the documents (`documents`).
"""
