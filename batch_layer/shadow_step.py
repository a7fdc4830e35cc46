"""The step `shadow` of a generation: what the gate let through answers live events for a while first."""

import time
from datetime import timedelta

from sqlalchemy import Engine

from batch_layer.experiment_commands import begin
from deeplambda.adapters.mysql import mysql_errors
from deeplambda.config import Settings
from deeplambda.errors import BadInput, Conflict, UnfitModel
from deeplambda.loading import PackedApplication
from deeplambda.records.verdict import Verdict
from deeplambda.state import experiment_store
from deeplambda.state.experiment_store import Experiment
from deeplambda.state.generation_store import Generation

SHARE = 0.2
"""Of a processor core, as of a shadow that a person begins."""
_ASKED_S = 2.0
_PAST_S = 600.0
"""So long past its time nobody has ended it: the part that follows experiments does not run."""


def shadowed(
    settings: Settings, engine: Engine, packed: PackedApplication, generation: Generation, verdict: Verdict
) -> Verdict:
    """The gate's verdict and what labels of live events add to it. A version that they decide for is the champion then.

    The shadow that a killed process has begun is taken up. Where there is no champion, or a person's experiment runs,
    there is none. Raises: UnfitModel when the labels, or a person, decide against it; NotReady.
    """
    experiment = _begun(engine, packed.name, generation, verdict.version)
    if experiment is None:
        try:
            experiment = begin(
                settings,
                packed,
                verdict.version,
                "shadow",
                share=SHARE,
                until_decided=True,
                labels_limit=settings.generation_shadow_labels,
                within=timedelta(seconds=settings.generation_shadow_s),
                verdict=verdict,
                who=_who(generation),
                why=f"{generation.cause}: {generation.why}",
            )
        except (BadInput, Conflict):
            return verdict
    deadline_s = time.monotonic() + settings.generation_shadow_s + _PAST_S
    while experiment is not None and experiment.state == "running" and time.monotonic() < deadline_s:
        time.sleep(_ASKED_S)
        experiment = _begun(engine, packed.name, generation, verdict.version)
    if experiment is None or experiment.state in ("running", "undecided", "promoted"):
        live = [experiment.comparison] if experiment and experiment.comparison else []
        return verdict.model_copy(update={"comparisons": [*verdict.comparisons, *live]})
    raise UnfitModel(f"the {experiment.name} was {experiment.state}: {experiment.reason}", "the champion serves on")


def _begun(engine: Engine, application: str, generation: Generation, version: int) -> Experiment | None:
    """The generation's own shadow, of this version."""
    with mysql_errors(), engine.connect() as connection:
        found = experiment_store.listed(connection, application)
    return next((each for each in found if (each.who, each.version) == (_who(generation), version)), None)


def _who(generation: Generation) -> str:
    return f"generation {generation.number}"
