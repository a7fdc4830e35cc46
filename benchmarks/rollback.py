"""Seconds until the first answer by another version: from a promotion, against the promised two, and from the decision
to roll back, against the promised five.

A promotion's time runs from the verdict: its record, Kafka, and what the model service does with a version that is new
to it, which is to fetch it, try its variants and warm it up. A rollback's runs from `roll_back`, as the command calls
it. The answers are those of the running service over HTTP, asked for again and again. Each round promotes a new copy of
the champion.
"""

import secrets
import statistics
import time
from base64 import b64encode

import urllib3
from pydantic_core import to_json

from batch_layer.gate import conclude, judge, roll_back
from benchmarks.ratio import Ratio
from deeplambda.adapters import mysql
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.clock import now
from deeplambda.config import Settings, load_settings
from deeplambda.loading import pack_application
from deeplambda.state import registry
from deeplambda.state.card import CARD, KEPT_ROWS, ONNX, WEIGHTS, Card, artefact_key, fetch_card
from examples.digits.application import Digits

_PROMOTED_WITHIN_S, _BACK_WITHIN_S = 2.0, 5.0
_ROUNDS = 5
_PATIENCE_S = 60.0


def measure() -> list[Ratio]:
    """The slowest of some rounds, for a promise is of each."""
    settings = load_settings()
    packed, platform = pack_application(Digits.name, settings), mysql.engine(settings, "platform")
    with platform.connect() as connection:
        champion = registry.champion(connection, Digits.name)
    if champion is None:
        raise LookupError(f"{Digits.name} has no champion")
    promoted_s, back_s = [], []
    for _ in range(_ROUNDS):
        other = _copy(settings, champion)
        verdict = judge(settings, packed, other, force=True)
        begun = time.perf_counter()
        conclude(settings, Digits.name, verdict, who="benchmark", why="to be rolled back")
        _answered_by(settings, other)
        promoted_s.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        roll_back(settings, Digits.name, champion.version, who="benchmark", why="measured")
        _answered_by(settings, champion.version)
        back_s.append(time.perf_counter() - begun)
    return [
        _ratio("first answer by the version promoted", promoted_s, _PROMOTED_WITHIN_S),
        _ratio("first answer by the version rolled back to", back_s, _BACK_WITHIN_S),
    ]


def _ratio(name: str, took_s: list[float], promised_s: float) -> Ratio:
    print(f"{name}: {', '.join(f'{each:.2f}' for each in took_s)} s, median {statistics.median(took_s):.2f} s")
    return Ratio(
        name=name,
        value=max(took_s) / promised_s,
        baseline_name="the promise",
        baseline=promised_s,
        measured=max(took_s),
        unit=f"s, the slowest of {_ROUNDS}",
        aim=1.0,
        higher_is_better=False,
    )


def _copy(settings: Settings, card: Card) -> int:
    """Publish a version's artefacts once more."""
    store, name = ObjectStore(settings), card.application

    def artefacts(version: int) -> Card:
        for artefact in (WEIGHTS, ONNX, KEPT_ROWS):
            store.put(artefact_key(name, version, artefact), store.get(artefact_key(name, card.version, artefact)))
        copied = fetch_card(store, name, card.version).model_copy(update={"version": version})
        store.put(artefact_key(name, version, CARD), to_json(copied))
        return copied

    return registry.publish(mysql.engine(settings, "platform"), name, secrets.token_hex(8), artefacts)


def _answered_by(settings: Settings, version: int) -> None:
    """Ask until an answer is by `version`."""
    event = {"event_id": "a", "occurred_at": now(), "image": b64encode(bytes(784)).decode()}
    body = to_json({"instances": [event]})
    deadline = time.monotonic() + _PATIENCE_S
    with urllib3.PoolManager(headers={"Content-Type": "application/json"}) as pool:
        while time.monotonic() < deadline:
            reply = pool.request("POST", f"{settings.model_url}/v1/models/{Digits.name}:predict", body=body)
            if reply.status == 200 and reply.json()["model_version"] == version:
                return
    raise TimeoutError(f"{Digits.name}/{version} has not answered within {_PATIENCE_S:.0f} s")


if __name__ == "__main__":
    print(*measure(), sep="\n")
