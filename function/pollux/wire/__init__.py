"""PURE. What travels between a client and Gemini, under one name: targets, headers, bodies, errors. Not streams."""

from pollux.wire.body import (
    inflate,
    model_value_span,
    openai_stream,
    read_answer,
    replace_model,
    total_tokens,
    with_aliases,
    with_body,
)
from pollux.wire.error import ERRORS, Problem, WireError, error_body, stream_error
from pollux.wire.guard import CREDENTIALS, GUARDS, gated, strip_query
from pollux.wire.headers import TO_CLIENT, TO_UPSTREAM, RawHeaders, client_deadline, client_headers, upstream_headers
from pollux.wire.target import COUNTED, Call, count_path, full_name, path_for, read_target
from pollux.wire.upload import UPLOAD_ADDRESSES, Upload, read_upload, session_target

__all__ = [
    "COUNTED",
    "CREDENTIALS",
    "ERRORS",
    "GUARDS",
    "TO_CLIENT",
    "TO_UPSTREAM",
    "UPLOAD_ADDRESSES",
    "Call",
    "Problem",
    "RawHeaders",
    "Upload",
    "WireError",
    "client_deadline",
    "client_headers",
    "count_path",
    "error_body",
    "full_name",
    "gated",
    "inflate",
    "model_value_span",
    "openai_stream",
    "path_for",
    "read_answer",
    "read_target",
    "read_upload",
    "replace_model",
    "session_target",
    "stream_error",
    "strip_query",
    "total_tokens",
    "upstream_headers",
    "with_aliases",
    "with_body",
]
