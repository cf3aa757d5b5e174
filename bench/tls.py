"""TLS contexts for benchmarks: upstreams speak TLS with the certificate of `tools.certificate`, as Gemini does."""

import ssl
from pathlib import Path


def of_server(file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def of_client(file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(file))
