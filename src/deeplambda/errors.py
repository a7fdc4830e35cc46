"""Errors that people see.

DeepLambdaError
├── ConfigurationError      a setting, file or tool is missing or wrong; a person fixes it
├── BadInput                data that breaks its contract; never retried
│   ├── InvalidEvent        one event; the stream dead-letters it, REST answers 422
│   ├── CorruptObject       an object whose bytes differ from what was recorded of them
│   └── UnknownApplication  no application of that name
├── Unauthorized            a caller without a token that holds
├── Forbidden               a caller whose role may not do this
├── NotReady                a part that should answer does not yet; worth a retry
└── Conflict                somebody else holds or has changed the thing
    └── UnfitModel       a model version that must not serve

Every error says what happened and, as `remedy`, what to do. `retryable` tells a loop whether to try again. All of
them survive pickling, because Spark sends them between processes.
"""


class DeepLambdaError(Exception):
    """Base of every error raised on purpose; `str()` is one sentence and the remedy."""

    retryable = False

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)  # Exception pickles its args: both must be there
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class ConfigurationError(DeepLambdaError):
    """A setting, file or tool is missing or wrong."""


class BadInput(DeepLambdaError):
    """Data that breaks its contract."""


class InvalidEvent(BadInput):
    """An event that its application's schema refuses."""


class CorruptObject(BadInput):
    """An object whose bytes differ from what was recorded of them."""


class UnknownApplication(BadInput):
    """No application of that name can be found."""


class Unauthorized(DeepLambdaError):
    """A caller who does not say who they are, or not in a way that holds."""


class Forbidden(DeepLambdaError):
    """A caller who may not do this."""


class NotReady(DeepLambdaError):
    """A part that should answer does not yet."""

    retryable = True


class Conflict(DeepLambdaError):
    """Somebody else holds or has changed the thing."""


class UnfitModel(Conflict):
    """A model version that must not serve."""
