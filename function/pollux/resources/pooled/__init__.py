"""Pooled files (POLLUX_FILES=pooled): the gateway receives them, keeps them as long as Google does, and copies them to
the project that serves a request that names them. Their client sees one file: that of the project that got it first.
"""
