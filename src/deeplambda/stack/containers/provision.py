"""Wait until each store answers in its own protocol, then create what the parts expect to find in it."""

from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from deeplambda.adapters.kafka import grant_topic_access
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records import topics
from deeplambda.stack import probes, provision

_PATIENCE_S = 180
_REPORT_EVERY = 10


def provision_stores(settings: Settings, report: Callable[[str], None]) -> None:
    """What the container `provision` does at every start; idempotent.

    Raises: NotReady when a store does not answer within three minutes.
    """
    for name, probe in (("MySQL", probes.mysql), ("S3", probes.s3), ("Kafka", probes.kafka)):
        report(f"{name}: {_waited_for(name, probe, settings, report)}")
    provision.mysql_accounts(settings)
    report("databases, tables and accounts are there")
    provision.s3_bucket(settings)
    report(f"bucket {settings.s3_bucket} is there")
    provision.kafka_topics(settings)
    for application in settings.applications:
        grant_topic_access(settings, "producer", write=[topics.events(application), topics.labels(application)])
    report("topics and access lists are there")


def _waited_for(name: str, probe: Callable[[Settings], str], settings: Settings, report: Callable[[str], None]) -> str:
    def report_wait(state: RetryCallState) -> None:
        if state.attempt_number % _REPORT_EVERY == 1 and state.outcome is not None:
            report(f"waiting for {name}: {state.outcome.exception()}")

    attempts = Retrying(
        retry=retry_if_exception_type(NotReady),
        wait=wait_fixed(1),
        stop=stop_after_delay(_PATIENCE_S),
        before_sleep=report_wait,
        reraise=True,
    )
    return attempts(probe, settings)
