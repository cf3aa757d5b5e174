"""PURE. What travels between a client and Gemini, under one name: targets, headers, bodies, resources, errors. Not
streams."""

from pollux.wire.addresses import elsewhere, mentioned, to_client, to_upstream
from pollux.wire.answered import answer_names
from pollux.wire.body import (
    inflate,
    openai_stream,
    read_once,
    replace_model,
    total_tokens,
    with_aliases,
    with_body,
)
from pollux.wire.bound import (
    CHAINED,
    COLLECTIONS,
    GOOGLE,
    below,
    collection,
    is_resource_call,
    makes_what_goes_together,
    may_name,
    named_by,
    names_exactly,
    path_names,
    references,
    resource,
)
from pollux.wire.error import ERRORS, GatewayError, Problem, error_body, stream_error
from pollux.wire.guard import CREDENTIALS, GUARDS, gated, strip_query
from pollux.wire.headers import TO_CLIENT, TO_UPSTREAM, RawHeaders, client_deadline, client_headers, upstream_headers
from pollux.wire.multipart import Part, boundary_of, parts
from pollux.wire.renamed import may_be_named, renamed
from pollux.wire.target import COUNTED, INTERACTION, Call, count_path, full_name, path_for, read_target
from pollux.wire.upload import UPLOAD_ADDRESSES, Upload, read_upload, session_target

__all__ = [
    "CHAINED",
    "COLLECTIONS",
    "COUNTED",
    "CREDENTIALS",
    "ERRORS",
    "GOOGLE",
    "GUARDS",
    "INTERACTION",
    "TO_CLIENT",
    "TO_UPSTREAM",
    "UPLOAD_ADDRESSES",
    "Call",
    "GatewayError",
    "Part",
    "Problem",
    "RawHeaders",
    "Upload",
    "answer_names",
    "below",
    "boundary_of",
    "client_deadline",
    "client_headers",
    "collection",
    "count_path",
    "elsewhere",
    "error_body",
    "full_name",
    "gated",
    "inflate",
    "is_resource_call",
    "makes_what_goes_together",
    "may_be_named",
    "may_name",
    "mentioned",
    "named_by",
    "names_exactly",
    "openai_stream",
    "parts",
    "path_for",
    "path_names",
    "read_once",
    "read_target",
    "read_upload",
    "references",
    "renamed",
    "replace_model",
    "resource",
    "session_target",
    "stream_error",
    "strip_query",
    "to_client",
    "to_upstream",
    "total_tokens",
    "upstream_headers",
    "with_aliases",
    "with_body",
]
