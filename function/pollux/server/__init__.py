"""The process: the ASGI app, its routes, admission, the admin API, start and stop."""
