"""What one writes first for low latency: poll, score in the process, produce. `python -m benchmarks.bare_loop IN OUT`.

No schema check, no dead letters, no batches larger than a poll, no checkpoint, no restart, no version that changes.
"""

import sys

import pyarrow as pa
import torch
from kafka import KafkaConsumer, KafkaProducer
from pydantic_core import to_json

from deeplambda.adapters.model_service import ModelClient
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import payload_batch
from deeplambda.config import load_settings
from deeplambda.features import call
from deeplambda.state.card import fetch_card
from deeplambda.state.versions import fetch_model, load_code


def main(events: str, results: str) -> None:
    """Run until it is killed; prints a line once it reads."""
    settings = load_settings()
    store = ObjectStore(settings)
    version = ModelClient(settings, "digits").serving()
    if version is None:
        sys.exit("digits has no champion; run 'deeplambda batch run digits'")
    card = fetch_card(store, "digits", version)
    code = load_code(store, settings, card)
    model = fetch_model(store, code.application, card)
    torch.set_num_threads(1)
    consumer = KafkaConsumer(events, bootstrap_servers=settings.kafka_bootstrap, auto_offset_reset="earliest")
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all")
    consumer.poll(1_000)
    print("reads", flush=True)
    while True:
        records = [record for batch in consumer.poll(500).values() for record in batch]
        if not records:
            continue
        found = [code.application.event.model_validate_json(record.value) for record in records]
        batch: pa.RecordBatch = payload_batch(code.application.event, found)
        features = code.featurizer.features(batch)
        with torch.inference_mode():
            outputs = call(model, {name: torch.from_numpy(array) for name, array in features.items()})
        for record, scores in zip(records, outputs.softmax(-1).tolist(), strict=True):
            result = {"event_id": record.key.decode(), "prediction": max(range(10), key=scores.__getitem__)}
            producer.send(results, key=record.key, value=to_json(result | {"scores": scores}))
        producer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:3])
