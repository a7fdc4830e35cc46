"""Errors that people see.

DeepLambdaError
├── ConfigurationError      a setting, file or tool is missing or wrong; a person has to fix it
├── BadInput                data that breaks its contract; never retried
│   ├── InvalidEvent        one event; the stream dead-letters it, REST answers 422
│   ├── CorruptObject       an object whose hash differs from the recorded one
│   ├── HeldBack            new rows that break a hard expectation; they wait on a branch for a person's word
│   ├── TooManyRefused      a batch view that would drop too many events that have a prediction
│   └── UnknownApplication  no application of that name
├── Unauthorized            a caller without a valid token
├── Forbidden               a caller whose role may not do this
├── NotReady                something that is needed is not available yet; worth a retry
│   ├── DiskFull            no space is left on a disk
│   ├── DeviceFailed        an accelerator does no more work for this process, which has to be begun anew
│   ├── Overloaded          a service has more to do than it can answer in time
│   ├── DeadlinePassed      the caller's own time for an answer is over
│   ├── NoTopic             a topic that is to be read is not there
│   ├── Overtaken           records expired before their reader came to them; a person has to give them up
│   └── Truncated           a topic ended before its reader's position; a person has to say what then
└── Conflict                another process or person holds, or has changed, what this one needs
    └── UnfitModel          a model version that must not serve

Every error says what happened and, as `remedy`, what to do. `retryable`: whether a loop should try again. All of
them survive pickling, because Spark sends them between processes.
"""

from typing import TypeVar


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
    """An object whose hash differs from the recorded one."""


class HeldBack(BadInput):
    """New rows that break a hard expectation of their application; readers and training do not see them."""


class TooManyRefused(BadInput):
    """More rows or events would be refused than may be."""


class UnknownApplication(BadInput):
    """No application of that name can be found."""


class Unauthorized(DeepLambdaError):
    """A caller without a valid token."""


class Forbidden(DeepLambdaError):
    """A caller who may not do this."""


class NotReady(DeepLambdaError):
    """Something that is needed is not available yet: a service, a topic, a free connection."""

    retryable = True


class DiskFull(NotReady):
    """No space is left on a disk; what was being written is not visible."""


class DeviceFailed(NotReady):
    """An accelerator has failed in a way after which it does no more work for this process."""


class Overloaded(NotReady):
    """A service has more to do than it can answer in time. wait_s: how long what it has will take it."""

    def __init__(self, message: str, remedy: str = "", wait_s: float = 0.0) -> None:
        super().__init__(message, remedy)
        self.args = (message, remedy, wait_s)  # what unpickling passes to __init__
        self.wait_s = wait_s


class DeadlinePassed(NotReady):
    """The time that the caller gave for an answer is over."""


class NoTopic(NotReady):
    """A topic that is to be read is not there."""


class Overtaken(NotReady):
    """Records expired before their reader came to them."""


class Truncated(NotReady):
    """A topic ended before the position that its reader had come to."""


class Conflict(DeepLambdaError):
    """Another process or person holds, or has changed, what this one needs."""


class UnfitModel(Conflict):
    """A model version that must not serve."""


E = TypeVar("E", bound=BaseException)


def kept(exc: E) -> E:
    """An exception that somebody keeps: without traceback and cause, whose frames hold all that was in hand when it was
    raised. Where those of a validator are held by pydantic, into which the collector cannot look, it is held for ever.
    """
    exc.__cause__ = exc.__context__ = None
    return exc.with_traceback(None)
