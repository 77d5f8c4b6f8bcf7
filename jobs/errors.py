"""The whole exception tree of Promptmill.

    PromptmillError               .code .param .message
    ├ InvalidRequest              the client's fault; answered with 400
    │ └ PayloadTooLarge           answered with 413
    ├ AuthenticationFailed        answered with 401
    ├ PermissionDenied            the key may not do this; answered with 403
    ├ QuotaExceeded               the project has what it may have; answered with 429
    ├ NotFound                    unknown here, or somebody else's: the same answer (404)
    ├ StateConflict               legal at another time (409, never retried by the SDK)
    ├ DamagedFile                 its bytes are not those that were sent; the download is cut off
    ├ Unavailable                 Postgres or Redis is away or full (503, may be retried)
    │ ├ Collision                 nothing was done, and the same transaction may succeed at once
    │ └ OutcomeUnknown            the connection broke in the middle of COMMIT: it is done, or it is not
    ├ ConfigurationError          a setting, a port or a file is wrong; the process does not start
    ├ StartFailed                 a program of the embedded stack did not start; the others are stopped
    └ EngineError
      ├ RequestRejected           the engine refuses one request; its row fails, its neighbours go on
      └ EngineFatal               the engine is gone; the process ends and its shards are run elsewhere

`jobs.lines.LineProblem` stays in its package: each one becomes a line of the batch's `errors`.
A request that fails is data (`jobs.outcomes.Outcome`), not an exception: no error of one row leaves its row.
"""


class PromptmillError(Exception):
    """Something went wrong in Promptmill."""

    code: str | None = None

    def __init__(self, message: str | None = None, *, code: str | None = None, param: str | None = None) -> None:
        self.message = message or (self.__doc__ or "").splitlines()[0]
        self.code = code or self.code
        self.param = param
        super().__init__(self.message)


class InvalidRequest(PromptmillError):
    """The request is not valid."""


class PayloadTooLarge(InvalidRequest):
    """The payload is larger than this server accepts."""


class AuthenticationFailed(PromptmillError):
    """Incorrect API key provided."""

    code = "invalid_api_key"


class PermissionDenied(PromptmillError):
    """The API key does not allow this."""

    code = "missing_scope"


class QuotaExceeded(PromptmillError):
    """The project has as much as it may have. `retry_after_ms`: when it may ask again; None: not before it deletes."""

    def __init__(self, message: str, *, code: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_ms = retry_after_ms


class NotFound(PromptmillError):
    """No such object."""


class StateConflict(PromptmillError):
    """The object is in a state that does not allow this."""


class DamagedFile(PromptmillError):
    """The file is not what was uploaded."""


class Unavailable(PromptmillError):
    """The server is not able to answer right now. Please try again."""

    code = "service_unavailable"


class Collision(Unavailable):
    """The server could not do this just now. Please try again."""


class OutcomeUnknown(Unavailable):
    """The server cannot tell whether this was done. Please look, or repeat the call."""


class ConfigurationError(PromptmillError):
    """The configuration does not allow this process to start."""


class StartFailed(PromptmillError):
    """A program of the stack did not start."""


class EngineError(PromptmillError):
    """The engine failed."""


class RequestRejected(EngineError):
    """The engine refuses this request. `status_code` goes into the row's response."""

    def __init__(
        self, message: str, *, status_code: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.status_code = status_code


class EngineFatal(EngineError):
    """The engine died or hangs and must be started again."""
