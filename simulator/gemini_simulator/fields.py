"""Which fields a request may have, and the 400 for one that Google does not know. PURE.

Only names are looked at, in both spellings: camelCase and snake_case. The lists follow the published API and all that
Google's own SDKs send to it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gemini_simulator.errors import unknown_fields
from gemini_simulator.references import snake

_MESSAGES: Mapping[str, str] = {
    "GenerateContentRequest": "model contents:Content systemInstruction:Content tools:Tool toolConfig:ToolConfig "
    "safetySettings:SafetySetting generationConfig:GenerationConfig cachedContent serviceTier store labels "
    "continuationToken",
    "CountTokensRequest": "model contents:Content generateContentRequest:GenerateContentRequest "
    "systemInstruction:Content tools:Tool toolConfig:ToolConfig generationConfig:GenerationConfig "
    "safetySettings:SafetySetting cachedContent",
    "EmbedContentRequest": "model content:Content taskType title outputDimensionality",
    "BatchEmbedContentsRequest": "model requests:EmbedContentRequest",
    "Content": "role parts:Part",
    "Part": "text inlineData:Blob fileData:FileData functionCall:FunctionCall functionResponse:FunctionResponse "
    "executableCode:ExecutableCode codeExecutionResult:CodeExecutionResult toolCall:ToolCall "
    "toolResponse:ToolResponse thought thoughtSignature videoMetadata:VideoMetadata partMetadata "
    "mediaResolution:PartMediaResolution audioTranscription mediaProcessing speechMetadata documentMetadata "
    "spreadsheetMetadata audioMetadata",
    "Blob": "mimeType data displayName",
    "FileData": "mimeType fileUri displayName",
    "FunctionCall": "id name args",
    "FunctionResponse": "id name response parts:FunctionResponsePart willContinue scheduling",
    "FunctionResponsePart": "inlineData:Blob fileData:FileData mediaProcessing mediaResolution:PartMediaResolution "
    "videoMetadata:VideoMetadata documentMetadata spreadsheetMetadata audioMetadata",
    "ExecutableCode": "id language code",
    "CodeExecutionResult": "id outcome output",
    "ToolCall": "id toolType args",
    "ToolResponse": "id toolType response",
    "VideoMetadata": "startOffset endOffset fps contentLayers",
    "PartMediaResolution": "level numTokens",
    "Tool": "functionDeclarations:FunctionDeclaration googleSearchRetrieval:GoogleSearchRetrieval codeExecution:Empty "
    "googleSearch:GoogleSearch computerUse urlContext:Empty fileSearch:FileSearch mcpServers:McpServer "
    "googleMaps:GoogleMaps",
    "Empty": "",
    "FunctionDeclaration": "name description parameters:Schema parametersJsonSchema response:Schema "
    "responseJsonSchema behavior",
    "Schema": "type format title description nullable enum items:Schema properties{}:Schema required minItems maxItems "
    "minProperties maxProperties minLength maxLength minimum maximum pattern example default anyOf:Schema "
    "propertyOrdering",
    "GoogleSearchRetrieval": "dynamicRetrievalConfig:DynamicRetrievalConfig",
    "DynamicRetrievalConfig": "mode dynamicThreshold",
    "GoogleSearch": "timeRangeFilter:Interval searchTypes:SearchTypes",
    "Interval": "startTime endTime",
    "SearchTypes": "webSearch:Empty imageSearch:Empty",
    "FileSearch": "fileSearchStoreNames topK metadataFilter",
    "McpServer": "name streamableHttpTransport",
    "GoogleMaps": "enableWidget authConfig",
    "ToolConfig": "functionCallingConfig:FunctionCallingConfig retrievalConfig:RetrievalConfig "
    "includeServerSideToolInvocations",
    "FunctionCallingConfig": "mode allowedFunctionNames",
    "RetrievalConfig": "latLng:LatLng languageCode",
    "LatLng": "latitude longitude",
    "SafetySetting": "category threshold",
    "GenerationConfig": "candidateCount stopSequences maxOutputTokens temperature topP topK seed responseMimeType "
    "responseSchema:Schema responseJsonSchema _responseJsonSchema presencePenalty frequencyPenalty responseLogprobs "
    "logprobs enableEnhancedCivicAnswers responseModalities speechConfig:SpeechConfig thinkingConfig:ThinkingConfig "
    "imageConfig:ImageConfig mediaResolution enableAffectiveDialog responseFormat translationConfig "
    "audioTranscriptionConfig",
    "ThinkingConfig": "includeThoughts thinkingBudget thinkingLevel",
    "ImageConfig": "aspectRatio imageSize",
    "SpeechConfig": "voiceConfig multiSpeakerVoiceConfig languageCode",
    "ChatRequest": "model messages max_tokens max_completion_tokens n stop stream stream_options temperature top_p "
    "tools tool_choice parallel_tool_calls response_format reasoning_effort modalities audio presence_penalty logprobs "
    "top_logprobs logit_bias service_tier user functions function_call prediction verbosity "
    "safety_identifier moderation extra_body:ExtraBody",
    "ExtraBody": "google",
    "EmbeddingsRequest": "model input dimensions encoding_format user extra_body:ExtraBody",
}
"""Message -> its fields, each with the message in it; {}: a map of such. Without one anything may be in it."""

ROOTS: Mapping[str, str] = {
    "generateContent": "GenerateContentRequest",
    "streamGenerateContent": "GenerateContentRequest",
    "countTokens": "CountTokensRequest",
    "embedContent": "EmbedContentRequest",
    "batchEmbedContents": "BatchEmbedContentsRequest",
    "chat/completions": "ChatRequest",
    "embeddings": "EmbeddingsRequest",
}


class _Field(NamedTuple):
    name: str
    """As errors spell it."""
    message: str
    is_map: bool


def _read(text: str) -> dict[str, _Field]:
    found = {}
    for word in text.split():
        name, _, message = word.partition(":")
        camel = name.removesuffix("{}")
        found[camel] = found[snake(camel)] = _Field(snake(camel), message, name != camel)
    return found


_FIELDS = {message: _read(text) for message, text in _MESSAGES.items()}


def check_fields(verb: str, document: Any) -> None:
    """Raises ApiError, with a line for each unknown field."""
    root = ROOTS.get(verb)
    if root is not None and isinstance(document, Mapping) and (found := list(_unknown(document, root, ""))):
        raise unknown_fields(found)


def _unknown(document: Mapping[str, Any], message: str, path: str) -> Iterator[tuple[str, str]]:
    """(name, where it stands; empty: at the top)."""
    fields = _FIELDS[message]
    for name, value in document.items():
        field = fields.get(name)
        if field is None:
            yield name, path
        elif field.message and isinstance(value, dict | list):
            where = f"{path}.{field.name}" if path else field.name
            if field.is_map and isinstance(value, dict):
                inner = [(f"{where}[{place}].value", item) for place, item in enumerate(value.values())]
            elif isinstance(value, list):
                inner = [(f"{where}[{place}]", item) for place, item in enumerate(value)]
            else:
                inner = [(where, value)]
            for place, item in inner:
                if isinstance(item, dict):
                    yield from _unknown(item, field.message, place)
