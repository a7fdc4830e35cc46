"""The simple protocol: raw events in, predictions out, with the schema and the transform of the application.

An instance is an event of which `event_id` and `occurred_at` may be left out, so that its payload is enough; or a
CloudEvent, of which `id` and `time` may be.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json
from werkzeug.exceptions import RequestEntityTooLarge

from deeplambda.adapters.model_service import ROWS_LIMIT
from deeplambda.application import Event
from deeplambda.clock import now
from deeplambda.errors import BadInput, InvalidEvent
from deeplambda.objective import Predictions
from deeplambda.records.decoding import Reason, RefusedEvent, decode_event, is_cloud_event

_NESTED = 2**20
"""Lists and objects in one request: small ones take 30 times their text, and while they are parsed all else waits."""


def decode_instances(body: bytes, schema: type[Event], *, limit_bytes: int) -> list[Event]:
    """The events in `{"instances": […]}`. limit_bytes: of one instance.

    Raises: BadInput when it is no such object or has very many lists, RequestEntityTooLarge for an instance beyond its
    limit or more than `ROWS_LIMIT` of them, InvalidEvent for what the schema refuses.
    """
    if body.count(b"[") + body.count(b"{") > _NESTED:
        raise BadInput(f"the request has more than {_NESTED} lists and objects", "send fewer instances in one")
    try:
        request = from_json(body)
    except ValueError as exc:
        raise BadInput(f"the request is not JSON: {exc}", "send UTF-8 JSON, nested at most 200 deep") from exc
    instances = request.get("instances") if isinstance(request, dict) else None
    if not (isinstance(instances, list) and instances):
        raise BadInput("the request has no list 'instances'", 'send {"instances": [{…event…}, …]}')
    if len(instances) > ROWS_LIMIT:
        raise RequestEntityTooLarge(f"the request has {len(instances)} instances; send at most {ROWS_LIMIT} in one")
    moment = now().isoformat()
    events = []
    for i, instance in enumerate(instances):
        made_up = {"event_id": made_up_id(i), "occurred_at": moment}
        if is_cloud_event(instance):
            instance = instance | {"data": made_up | instance["data"]}
        elif isinstance(instance, dict):
            instance = made_up | instance
        try:
            events.append(decode_event(schema, to_json(instance), limit_bytes=limit_bytes))
        except RefusedEvent as exc:
            if exc.reason is Reason.TOO_LARGE:
                raise RequestEntityTooLarge(f"instance {i}: {exc}") from exc
            raise InvalidEvent(f"instance {i}: {exc.message}", exc.remedy) from exc
    return events


def made_up_id(instance: int) -> str:
    """The event id of an instance that has none."""
    return f"instance-{instance}"


def merged(parts: Sequence[tuple[Sequence[int], Predictions]]) -> Predictions:
    """Predictions of some rows each, by their positions, as those of all rows."""
    places = {row: (part, n) for part, (rows, _) in enumerate(parts) for n, row in enumerate(rows)}
    order = [(parts[part][1], n) for _, (part, n) in sorted(places.items())]
    return Predictions(
        values=[found.values[n] for found, n in order],
        confidence_N=np.array([found.confidence_N[n] for found, n in order]),
        numbers_N=np.array([np.nan if (number := found.number(n)) is None else number for found, n in order]),
        scores=[found.scores_of(n) for found, n in order],
    )


def encode_predictions(
    events: list[Event], version: int, predictions: Predictions, versions: Sequence[int] | None = None
) -> bytes:
    """The reply; a confidence, value or scores that the objective does not have are null. versions: by row, where a
    canary runs."""
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
                **({} if versions is None else {"model_version": versions[i]}),
            }
            for i, (event, text, confidence) in rows
        ],
    }
    return to_json(reply, inf_nan_mode="null")
