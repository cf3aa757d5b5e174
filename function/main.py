"""The entry point: `functions-framework --target gateway --source function/main.py --asgi`."""

from typing import Any

import functions_framework.aio

from pollux.server.functions import Entry

entry = Entry()


@functions_framework.aio.http
async def gateway(request: object) -> Any:
    """What is no text and no dictionary is called as an ASGI app, with the whole request, unread."""
    return entry
