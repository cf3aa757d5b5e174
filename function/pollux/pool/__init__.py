"""Which project serves a request, and when: quotas, windows, health, booking."""
