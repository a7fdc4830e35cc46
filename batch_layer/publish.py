"""Publish: a finished run → an immutable model version: weights, ONNX export and card on S3, a row in the registry."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import torch
from pydantic_core import to_json

from batch_layer.data_set import fetch_data_set
from batch_layer.fitting import featurizer_of, fetch_state
from batch_layer.reference import reference_of
from batch_layer.shard_format import MANIFEST, PAYLOAD, manifest_key, prepared_prefix
from batch_layer.training_run import TrainedRun
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.mysql import engine
from deeplambda.adapters.s3 import ObjectStore, sha256_of
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.features import call
from deeplambda.loading import PackedApplication
from deeplambda.records.featurizer import Featurizer
from deeplambda.records.lifecycle import EpochTrained
from deeplambda.splits import TEST, VALIDATION
from deeplambda.state import outbox, registry
from deeplambda.state.card import CARD, KEPT_ROWS, ONNX, REFERENCE, STATE, WEIGHTS, Card, artefact_key, code_key
from deeplambda.state.kept_rows import LIMIT_ROWS, KeptRows, decode_payload
from deeplambda.state.onnx_export import exported
from deeplambda.state.weights import encoded_weights


def publish_run(settings: Settings, packed: PackedApplication, trained: TrainedRun) -> int:
    """The run's version; publishing a run again gives the version it has and changes nothing.

    Raises: UnfitModel when the ONNX export differs from the model, Conflict, NotReady.
    """
    platform, store = engine(settings, "platform"), ObjectStore(settings)
    state = fetch_state(store, packed.name, trained.dataset)
    kept = _kept_rows(store, featurizer_of(packed, state), trained)
    batch_size = trained.hyperparameters["batch_size"]
    reference = reference_of(store, packed.load(), trained.dataset, trained.model, batch_size)

    def store_artefacts(version: int) -> Card:
        onnx = exported(trained.model, kept.features)
        store.put(code_key(packed.name, packed.code_version), packed.zip_file.read_bytes())
        state_sha256 = store.put(artefact_key(packed.name, version, STATE), state.content) if state else None
        reference_sha256 = (
            store.put(artefact_key(packed.name, version, REFERENCE), to_json(reference)) if reference else None
        )
        card = Card(
            application=packed.name,
            version=version,
            run=trained.run,
            dataset=trained.dataset,
            snapshot=trained.snapshot,
            **_origin(store, packed.name, trained.dataset),
            parent=trained.parent.version if trained.parent else None,
            init_from=trained.parent.name if trained.parent else None,
            made_anew=trained.made_anew,
            code_version=packed.code_version,
            code_sha256=sha256_of(packed.zip_file.read_bytes()),
            hyperparameters=trained.hyperparameters,
            metrics=trained.epochs[-1].metrics,
            parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
            features=trained.features,
            output_size=packed.load().objective.output_size,
            weights_sha256=store.put(artefact_key(packed.name, version, WEIGHTS), encoded_weights(trained.model)),
            onnx_sha256=store.put(artefact_key(packed.name, version, ONNX), onnx),
            state_format=state.format if state else None,
            state_sha256=state_sha256,
            kept_rows_sha256=store.put(artefact_key(packed.name, version, KEPT_ROWS), kept.encode()),
            reference_sha256=reference_sha256,
            trained_rows=trained.epochs[-1].rows,
            training_s=sum(epoch.duration_s for epoch in trained.epochs),
            device=trained.epochs[-1].device,
            torch_version=torch.__version__,
            created_at=now(),
        )
        store.put(artefact_key(packed.name, version, CARD), to_json(card))
        return card

    version = registry.publish(platform, packed.name, trained.run, store_artefacts)
    with Publisher(settings) as publisher:
        outbox.relay(platform, publisher)
    return version


def _origin(store: ObjectStore, application: str, dataset: str) -> dict[str, Any]:
    """What the card says of the rows that a data set was made of."""
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    if store.digest(manifest := manifest_key(application, dataset)) is not None:
        for shard in MANIFEST.validate_json(store.get(manifest)):
            rows[shard.split] += Counter(examples=shard.rows - shard.events, events=shard.events)
    found, events = fetch_data_set(store, application, dataset), None
    if found is not None and found.labelled_events is not None and found.labelled_events.events:
        events = found.labelled_events
    return {
        "rows": rows,
        "events_snapshot": events.events_snapshot if events else None,
        "labels_snapshot": events.labels_snapshot if events else None,
        "withdrawals_snapshot": events.withdrawals_snapshot if events else None,
        "recent_from": events.recent_from if events else None,
    }


def _kept_rows(store: ObjectStore, featurizer: Featurizer, trained: TrainedRun) -> KeptRows:
    """The first rows of the data set's test split, with the features and the outputs that this run gives them."""
    payload = _first_payloads(store, featurizer.application.name, trained.dataset)
    features = featurizer.features(payload)
    with torch.inference_mode():
        outputs = call(trained.model, {name: torch.from_numpy(array) for name, array in features.items()})
    return KeptRows(payload=payload, features=features, outputs=outputs.float().numpy())


def _first_payloads(store: ObjectStore, application: str, dataset: str) -> pa.RecordBatch:
    """Up to LIMIT_ROWS rows of the test split. Raises: BadInput when it has none."""
    pieces: list[pa.RecordBatch] = []
    for found in store.list(f"{prepared_prefix(application, dataset)}{TEST}-"):
        if found.key.endswith(PAYLOAD) and sum(map(len, pieces)) < LIMIT_ROWS:
            pieces.append(decode_payload(store.get(found.key), LIMIT_ROWS))
    if not any(map(len, pieces)):
        raise BadInput(f"data set {dataset} of {application} has no test rows", "see what was ingested")
    (payload,) = pa.Table.from_batches(pieces).slice(0, LIMIT_ROWS).combine_chunks().to_batches()
    return payload


def model_row(card: Card) -> dict[str, Any]:
    """A version as a row of `lake.<application>.models`."""
    return {
        "version": card.version,
        "run": card.run,
        "created_at": card.created_at,
        "dataset": card.dataset,
        "snapshot": card.snapshot,
        "code_version": card.code_version,
        "weights_sha256": card.weights_sha256,
        "parameters": card.parameters,
        "hyperparameters": to_json(card.hyperparameters).decode(),
        "card": card.model_dump_json(),
    }


def metric_rows(card: Card, epochs: Sequence[EpochTrained]) -> list[dict[str, Any]]:
    """A version's figures as rows of `lake.<application>.model_metrics`; those that its card gives have no epoch."""

    def row(name: str, value: float, epoch: int | None, at: datetime, split: str = TEST) -> dict[str, Any]:
        return {
            "version": card.version,
            "split": split,
            "name": name,
            "value": value,
            "epoch": epoch,
            "recorded_at": at,
        }

    by_epoch = [
        row(name, value, epoch.epoch, epoch.at, split)
        for epoch in epochs
        for split, metrics in ((TEST, epoch.metrics), (VALIDATION, epoch.validation_metrics))
        for name, value in metrics.items()
    ]
    return by_epoch + [row(name, value, None, card.created_at) for name, value in card.metrics.items()]
