# SPDX-License-Identifier: GPL-3.0-or-later
"""Which errors there are, whose fault each is, and how OpenAI's dialect writes it.

    CortexError                          code, status, retry_after_s, and facts as fields
    ├── ClientError                      the caller must change something; a retry will not help
    │   ├── MalformedJsonError           400 malformed_json
    │   ├── MissingModelFieldError       400 missing_model_field
    │   ├── InvalidRequestBodyError      400 invalid_request_body
    │   ├── ContextLengthExceededError   400 context_length_exceeded
    │   ├── VisionUnsupportedError       400 vision_unsupported
    │   ├── ChainedConversationError     400 chained_conversation_not_supported
    │   ├── InvalidApiKeyError           401 invalid_api_key
    │   ├── ModelNotAllowedError         403 model_not_allowed
    │   ├── ModelNotFoundError           404 model_not_found
    │   ├── ModelInfeasibleError         404 model_infeasible
    │   ├── RouteNotFoundError           404 route_not_found
    │   ├── RequestNotFoundError         404 request_not_found
    │   ├── MethodNotAllowedError        405 method_not_allowed
    │   ├── RequestTimeoutError          408 request_timeout
    │   ├── SpecConflictError            409 spec_conflict
    │   ├── WeightsInUseError            409 weights_in_use
    │   ├── CannotSleepError             409 cannot_sleep
    │   ├── RequestTooLargeError         413 request_too_large
    │   ├── UnsupportedMediaTypeError    415 unsupported_media_type
    │   ├── WrongModalityError           422 wrong_modality
    │   ├── WebSocketRefusedError        426 websocket_not_supported
    │   ├── LoadRefusedError             422 a kind of its own, told before any device memory is touched
    │   └── InsufficientQuotaError       429 insufficient_quota
    ├── BusyError                        nothing is wrong, later will do; always has retry_after_s
    │   ├── QueueFullError               429 queue_full
    │   ├── RateLimitExceededError       429 rate_limit_exceeded
    │   ├── NoHealthyNodeError           503 no_healthy_node
    │   ├── ModelLoadingError            503 model_loading
    │   ├── ModelNotLoadedError          503 model_loading
    │   ├── ModelRecoveringError         503 model_recovering
    │   ├── WaitTimeoutError             503 wait_timeout
    │   ├── InsufficientVramError        503 insufficient_vram
    │   └── ShuttingDownError            503 shutting_down
    ├── FleetError                       ours, a node's or an engine's fault
    │   ├── InternalError                500 internal_error
    │   ├── LoadFailedError              502 load_failed
    │   ├── EngineDiedError              502 engine_died
    │   ├── UpstreamConnectionError      502 upstream_connection_error
    │   ├── UpstreamProtocolError        502 upstream_protocol_error
    │   └── UpstreamTimeoutError         504 upstream_timeout
    └── OperatorError                    a config, file, port or key is wrong; ends a command, never sent to a client

Raise with facts, not prose: `ModelNotFoundError(model="qwen", known=["a"])`. The class writes the sentence
from its `says`, which tells what was asked, what was found, and what to do; each fact also rides in the
body. To add one: a class here, a line in the tree. Pure.
"""

from typing import ClassVar

import msgspec

_ENCODE = msgspec.json.Encoder()


class CortexError(Exception):
    """The root. Never raised itself.

    Attributes:
        code: the word clients branch on; the same in metrics and logs.
        status: the HTTP status, in OpenAI's dialect.
        kind: OpenAI's `error.type`.
        says: the sentence; its fields are the facts.
        retry_after_s: seconds after which a retry makes sense; None: a retry will not help.
        param: the request's field at fault, as a path; None: none, or not known.
        facts: what the sentence rests on; goes into the body beside the message.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "api_error"
    says: ClassVar[str] = "{message}"
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(
        self, *, param: str | None = None, retry_after_s: float | None = None, **facts: object
    ) -> None:
        self.facts = facts
        self.param = param
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s
        told, reason = facts, facts.get("reason")
        if isinstance(reason, str) and "{reason}." in self.says:  # one full stop is enough
            told = {**facts, "reason": reason.removesuffix(".")}
        super().__init__(self.says.format(**told))

    @property
    def message(self) -> str:
        """The sentence, with its facts filled in."""
        return str(self)


class ClientError(CortexError):
    """The caller must change something; a retry will not help."""

    status = 400
    kind = "invalid_request_error"


class MalformedJsonError(ClientError):
    """The body is not JSON."""

    code = "malformed_json"
    says = "The request body is not valid JSON: {reason}. Send one JSON object."


class MissingModelFieldError(ClientError):
    """The body names no model."""

    code = "missing_model_field"
    says = "The request names no model: `model` is missing or empty. GET /v1/models lists what can be asked for."


class InvalidRequestBodyError(ClientError):
    """The body is JSON of the wrong shape."""

    code = "invalid_request_body"
    says = "The request body does not fit: {reason}."


class ContextLengthExceededError(ClientError):
    """The prompt, or prompt and answer together, are longer than the model allows."""

    code = "context_length_exceeded"
    says = "{reason}"


class VisionUnsupportedError(ClientError):
    """An image for a model that reads text only."""

    code = "vision_unsupported"
    says = "The model '{model}' reads text only, and the request has an image. Ask a model with the capability `vision`."


class ChainedConversationError(ClientError):
    """A request that continues a conversation kept on the server; none is kept here."""

    code = "chained_conversation_not_supported"
    says = (
        "Conversations are not kept here, so `{field}` cannot be followed. Send the full history."
    )


class InvalidApiKeyError(ClientError):
    """No key, or one that is not known."""

    code = "invalid_api_key"
    status = 401
    says = "The API key is missing or not known here. Send `Authorization: Bearer KEY` or `x-api-key: KEY`."


class ModelNotAllowedError(ClientError):
    """The key may not use this model."""

    code = "model_not_allowed"
    status = 403
    kind = "permission_error"
    says = "This key may not use the model '{model}'."


class ModelNotFoundError(ClientError):
    """Nobody declares or has the model."""

    code = "model_not_found"
    status = 404
    says = "The model '{model}' is not served here. GET /v1/models lists what is."


class ModelInfeasibleError(ClientError):
    """The model is declared, and no node can ever hold it."""

    code = "model_infeasible"
    status = 404
    says = "The model '{model}' cannot run on any node: {reason}."


class RouteNotFoundError(ClientError):
    """No such path."""

    code = "route_not_found"
    status = 404
    says = "There is no route {method} {path} here."


class RequestNotFoundError(ClientError):
    """No request of that id is remembered."""

    code = "request_not_found"
    status = 404
    says = (
        "The request '{request_id}' is not known here. The last {kept} are, since this gateway started; "
        "every answer has its id in x-request-id."
    )


class MethodNotAllowedError(ClientError):
    """The path exists, with another method."""

    code = "method_not_allowed"
    status = 405
    says = "{path} does not take {method}; it takes {allowed}."


class RequestTimeoutError(ClientError):
    """The client stopped in the middle of its request."""

    code = "request_timeout"
    status = 408
    says = (
        "The request broke off: no more of its body came for {idle_s:.0f} s. Send it again, whole."
    )


class SpecConflictError(ClientError):
    """The model is resident with another spec."""

    code = "spec_conflict"
    status = 409
    says = "The model '{model}' is resident with another spec; they differ in {differs}. Unload it first."


class CannotSleepError(ClientError):
    """The model's engine was not started so that it can sleep, or its platform cannot."""

    code = "cannot_sleep"
    status = 409
    says = "The model '{model}' cannot sleep here: its engine ({harness}) keeps its memory until it ends. Unload it instead."


class WeightsInUseError(ClientError):
    """A model's files cannot be removed."""

    code = "weights_in_use"
    status = 409
    says = "The files of '{model}' stay: {reason}. {suggestion}"


class RequestTooLargeError(ClientError):
    """The body is longer than the operator allows."""

    code = "request_too_large"
    status = 413
    says = "The request body is larger than {limit_mb} MiB, the limit here (`max_body_mb`)."


class UnsupportedMediaTypeError(ClientError):
    """The body is declared to be something else than JSON."""

    code = "unsupported_media_type"
    status = 415
    says = "The content type '{content_type}' is not taken here; send application/json."


class WebSocketRefusedError(ClientError):
    """A WebSocket handshake. Clients of OpenAI's Responses go on with POST when they are told 426."""

    code = "websocket_not_supported"
    status = 426
    says = (
        "{path} is not served over a WebSocket; send a POST, with `stream` for events as they come."
    )


class WrongModalityError(ClientError):
    """The model is there, and does something else: an embedder that is asked to chat."""

    code = "wrong_modality"
    status = 422
    says = (
        "The model '{model}' does not serve {path}; it has the capabilities: {capabilities}. "
        "GET /v1/models lists what each model can do."
    )


class LoadRefusedError(ClientError):
    """A spec that cannot be loaded, told before any device memory is touched.

    `load_kind` is one of repo_fetch_failed, empty_repo, quant_not_found, unsupported_architecture,
    tp_infeasible, insufficient_vram, unknown_harness, corrupt_weights, invalid_spec,
    multi_host_unsupported, insufficient_disk; it is the body's code. Only `repo_fetch_failed` of a source that does
    not answer is worth a retry, and says after how long.
    """

    code = "load_refused"
    status = 422
    says = "The model '{model}' cannot be loaded: {reason}. {suggestion}"


class InsufficientQuotaError(ClientError):
    """The key's budget is spent."""

    code = "insufficient_quota"
    status = 429
    kind = "insufficient_quota"
    says = "The budget of this key is spent. Ask the operator for more."


class BusyError(CortexError):
    """Nothing is wrong; later will do. Always carries retry_after_s."""

    status = 503
    default_retry_after_s = 5.0


class QueueFullError(BusyError):
    """The model's queue has no place."""

    code = "queue_full"
    status = 429
    kind = "rate_limit_error"
    says = "The model '{model}' has {waiting} requests waiting, as many as may. Try again shortly."


class RateLimitExceededError(BusyError):
    """The key's rate, or share of the queue, is used up for now."""

    code = "rate_limit_exceeded"
    status = 429
    kind = "rate_limit_error"
    says = "The rate limit of this key is reached: {reason}."


class NoHealthyNodeError(BusyError):
    """Nodes that could serve it are not reachable now."""

    code = "no_healthy_node"
    says = "No node that could serve '{model}' answers now ({reason}). Nodes are looked at every few seconds."


class ModelLoadingError(BusyError):
    """The model is coming up."""

    code = "model_loading"
    says = "The model '{model}' is loading on {node}."


class ModelNotLoadedError(BusyError):
    """The model is not up, and the request is of a kind that does not bring it up."""

    code = "model_loading"
    says = (
        "The model '{model}' is not loaded, counting tokens does not load it, and its files are on no node that could "
        "count by them now. A message to it loads it."
    )


class ModelRecoveringError(BusyError):
    """The model's engine failed and is being restarted."""

    code = "model_recovering"
    default_retry_after_s = 2.0
    says = "The engine of '{model}' failed and is being restarted."


class WaitTimeoutError(BusyError):
    """A place, or a load, did not come in time."""

    code = "wait_timeout"
    says = "The request for '{model}' waited {waited_s:.0f} s, as long as it may, for {what}."


class InsufficientVramError(BusyError):
    """The room is held by work in flight."""

    code = "insufficient_vram"
    says = "There is no room for '{model}' now: {reason}."


class ShuttingDownError(BusyError):
    """The daemon is stopping."""

    code = "shutting_down"
    default_retry_after_s = 15.0
    says = "This {daemon} is shutting down and takes no new work."


class FleetError(CortexError):
    """Ours, a node's or an engine's fault."""

    status = 502


class InternalError(FleetError):
    """A fault in our own code; the log has the traceback under this request id."""

    code = "internal_error"
    status = 500
    says = "Something went wrong inside {daemon}; its log tells more under the request id {request_id}."


class LoadFailedError(FleetError):
    """A load that failed for good; `load_kind` says how."""

    code = "load_failed"
    says = "Loading '{model}' on {node} failed ({load_kind}): {reason}"


class EngineDiedError(FleetError):
    """The engine went away under the request."""

    code = "engine_died"
    default_retry_after_s = 2.0
    says = "The engine of '{model}' died: {reason}."


class UpstreamConnectionError(FleetError):
    """The upstream could not be reached, or cut the connection."""

    code = "upstream_connection_error"
    default_retry_after_s = 2.0
    says = "The connection to {upstream} failed: {reason}."


class UpstreamProtocolError(FleetError):
    """The upstream answered something that cannot be understood."""

    code = "upstream_protocol_error"
    default_retry_after_s = 2.0
    says = "{upstream} answered something that cannot be understood: {reason}."


class UpstreamTimeoutError(FleetError):
    """The upstream was silent for too long."""

    code = "upstream_timeout"
    status = 504
    default_retry_after_s = 5.0
    says = "{upstream} was silent for {idle_s:.0f} s, longer than it may be."


class OperatorError(CortexError):
    """A config, file, port or key is wrong. Ends a command with exit code 2; never sent to a client."""

    code = "operator_error"
    says = "{message}"


def _collect(kind: type[CortexError]) -> dict[str, int]:
    found = {kind.code: kind.status}
    for child in kind.__subclasses__():
        found |= _collect(child)
    return found


_STATUS_OF = _collect(CortexError)


def status_of(code: object) -> int | None:
    """The status that goes with an error's code, where only that is told; None: the code is not known.

    Some servers say the status itself.
    """
    if isinstance(code, str):
        return _STATUS_OF.get(code)
    is_status = isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600
    return code if is_status and isinstance(code, int) else None


def write_openai(error: CortexError) -> bytes:
    """The error as OpenAI's envelope: `{"error": {"message", "type", "code", "param", …facts}}`."""
    body = {**error.facts, **_openai_fields(error)}
    return _ENCODE.encode({"error": body})


def _openai_fields(error: CortexError) -> dict[str, object]:
    return {
        "message": error.message,
        "type": error.kind,
        "code": code_of(error),
        "param": error.param,
    }


def code_of(error: CortexError) -> str:
    """A refused load has a code per kind, so that a gateway can tell them apart."""
    if isinstance(error, LoadRefusedError):
        return str(error.facts.get("load_kind", error.code))
    return error.code
