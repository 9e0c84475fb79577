"""Errors of the API, in OpenAI's shape: an object with message, type, param and code, and a status."""

from __future__ import annotations

import json

INVALID = "invalid_request_error"


class ApiError(Exception):
    """A request that is answered with an error; `param` names what is wrong in it."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> bytes:
        """Return the JSON of the response."""
        values = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": values}).encode()


def unsupported(param: str, why: str) -> ApiError:
    """Return the error for a parameter that would change the answer and is not implemented."""
    return ApiError(f"{param} is not supported here: {why}", param=param, code="unsupported_parameter")


def too_deep(param: str) -> ApiError:
    """Return the error for a value that no template can write."""
    return ApiError(f"{param}: nested too deeply", param=param)


def failed() -> ApiError:
    """Return the error for a fault of the server; the log says more."""
    return ApiError("the server failed; its log says why", status=500, kind="server_error", code="server_error")
