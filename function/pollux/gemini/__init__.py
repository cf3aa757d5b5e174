"""PURE. What travels between a client and Gemini, under one name: targets, headers, bodies, resources, errors. Not
streams."""

from pollux.gemini.addresses import elsewhere, mentioned, to_client, to_upstream
from pollux.gemini.answered import answer_names
from pollux.gemini.body import (
    inflate,
    makes_interaction,
    openai_stream,
    read_once,
    replace_model,
    total_tokens,
    with_aliases,
    with_body,
)
from pollux.gemini.call import COUNTED, INTERACTION, Call, count_path, full_name, path_for, read_target
from pollux.gemini.errors import ERRORS, GatewayError, Problem, error_body, stream_error
from pollux.gemini.guard import CREDENTIALS, GUARDS, gated, strip_query
from pollux.gemini.headers import TO_CLIENT, TO_UPSTREAM, RawHeaders, client_deadline, client_headers, upstream_headers
from pollux.gemini.multipart import Part, boundary_of, parts
from pollux.gemini.names import (
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
from pollux.gemini.renamed import may_be_named, renamed
from pollux.gemini.upload import OF_UPLOADS, UPLOAD_ADDRESSES, Upload, read_upload, session_target

__all__ = [
    "CHAINED",
    "COLLECTIONS",
    "COUNTED",
    "CREDENTIALS",
    "ERRORS",
    "GOOGLE",
    "GUARDS",
    "INTERACTION",
    "OF_UPLOADS",
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
    "makes_interaction",
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
