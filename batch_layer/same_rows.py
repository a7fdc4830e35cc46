"""Candidate and champion on the same rows: the test split of the candidate's data set, whose features lie on S3.

It is fair while both take the same features, so that the champion can be given the candidate's: equal code, and equal
learned state. A champion of other code would need the payloads, which are Spark's to read.
"""

import logging

from batch_layer.compute import best_compute
from batch_layer.shard_format import MANIFEST, manifest_key, read_shard
from batch_layer.trainer import Rows, judged
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.application import Application
from deeplambda.config import Settings
from deeplambda.errors import BadInput, UnfitModel
from deeplambda.splits import TEST
from deeplambda.state.card import Card
from deeplambda.state.versions import fetch_model, load_code

_log = logging.getLogger(__name__)


def on_same_rows(
    settings: Settings, application: Application, candidate: Card, champion: Card, metric: str
) -> tuple[float, float] | None:
    """The metric of candidate and champion, measured now on the same rows.

    application: the deployed one, whose metrics count. None when the two take different features, or when the shards or
    an artefact of the champion's are no longer there to measure with. Raises: NotReady.
    """
    if champion.featurizer_id != candidate.featurizer_id or champion.features != candidate.features:
        return None
    store, compute = ObjectStore(settings), best_compute()
    try:
        rows = _test_rows(store, candidate)
        found = []
        for card in (candidate, champion):
            model = compute.place(fetch_model(store, load_code(store, settings, card).application, card))
            found.append(judged(application, model, rows, compute.device)[metric])
    except (BadInput, UnfitModel) as exc:
        _log.warning(
            "%s/%d and %d were not measured on the same rows: %s",
            *(candidate.application, candidate.version, champion.version, exc),
        )
        return None
    return found[0], found[1]


def _test_rows(store: ObjectStore, card: Card) -> Rows:
    shards = MANIFEST.validate_json(store.get(manifest_key(card.application, card.dataset)))
    of_split = sorted((each for each in shards if each.split == TEST), key=lambda each: each.partition)
    rows = Rows.joined([Rows.of(*read_shard(store.get(each.key, sha256=each.sha256), each.key)) for each in of_split])
    if not len(rows):
        raise BadInput(f"data set {card.dataset} of {card.application} has no test rows")
    return rows
