"""The simple protocol: raw events in, predictions out, with the schema and the transform of the application.

An instance is an event of which `event_id` and `occurred_at` may be left out, so that its payload is enough.
"""

from typing import Any

from pydantic_core import from_json, to_json
from werkzeug.exceptions import RequestEntityTooLarge

from deeplambda.application import Event
from deeplambda.clock import now
from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.objective import Predictions
from deeplambda.records.decoding import Reason, RefusedEvent, decode_event


def decode_instances(body: bytes, schema: type[Event], *, limit_bytes: int) -> list[Event]:
    """The events in `{"instances": […]}`. limit_bytes: of one instance.

    Raises: BadInput when it is no such object, RequestEntityTooLarge, InvalidEvent for what the schema refuses.
    """
    try:
        request = from_json(body)
    except ValueError as exc:
        raise BadInput(f"the request is not JSON: {exc}", "send UTF-8 JSON, nested at most 200 deep") from exc
    instances = request.get("instances") if isinstance(request, dict) else None
    if not (isinstance(instances, list) and instances):
        raise BadInput("the request has no list 'instances'", 'send {"instances": [{…event…}, …]}')
    moment = now().isoformat()
    events = []
    for i, instance in enumerate(instances):
        if isinstance(instance, dict):
            instance = {"event_id": f"instance-{i}", "occurred_at": moment} | instance
        try:
            events.append(decode_event(schema, to_json(instance), limit_bytes=limit_bytes))
        except RefusedEvent as exc:
            if exc.reason is Reason.TOO_LARGE:
                raise RequestEntityTooLarge(f"instance {i}: {exc}") from exc
            raise InvalidEvent(f"instance {i}: {exc.message}", exc.remedy) from exc
    return events


def encode_predictions(events: list[Event], version: int, predictions: Predictions) -> bytes:
    """The reply; a confidence, value or scores that the objective does not have are null."""
    rows = enumerate(zip(events, predictions.values, predictions.confidence_N.tolist(), strict=True))
    reply: dict[str, Any] = {
        "model_version": version,
        "predictions": [
            {
                "event_id": event.event_id,
                "prediction": text,
                "confidence": confidence,
                "value": predictions.number(i),
                "scores": predictions.scores_of(i),
            }
            for i, (event, text, confidence) in rows
        ],
    }
    return to_json(reply, inf_nan_mode="null")
