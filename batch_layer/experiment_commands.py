"""`deeplambda model shadow`, `canary` and `experiment`: a candidate on live traffic beside the champion."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from batch_layer.command_start import ApplicationName, console, packed_application
from batch_layer.live_verdicts import in_words
from deeplambda.adapters.kafka import Publisher
from deeplambda.adapters.mysql import engine, mysql_errors
from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import BadInput, UnfitModel
from deeplambda.loading import PackedApplication
from deeplambda.records.shown import shown
from deeplambda.records.verdict import Verdict
from deeplambda.state import experiment_store, outbox, registry
from deeplambda.state.data_changes import operator
from deeplambda.state.experiment_store import Experiment, Kind

Version = Annotated[int, typer.Argument(help="a number from 'deeplambda model list'", min=1)]
Why = Annotated[str, typer.Option("--why", help="the reason, for 'deeplambda model history'")]
NO_REASON = "by hand, no reason given"
UntilDecided = Annotated[
    bool, typer.Option("--until-decided", help="promote or reject it by itself, once its labels say enough")
]
Labels = Annotated[int | None, typer.Option("--labels", help="end undecided after so many labels", min=1)]
Force = Annotated[bool, typer.Option("--force", help="even where the gate would refuse it")]


def shadow(
    application: ApplicationName,
    version: Version,
    share: Annotated[str, typer.Option("--share", help="of a processor core that it may take")] = "20%",
    until_decided: UntilDecided = False,
    labels: Labels = None,
    force: Force = False,
    why: Why = NO_REASON,
) -> None:
    """Have a version answer live events beside the champion; its answers go to nobody.

    It reads events and the champion's predictions from Kafka, in a process of its own. What does not fit into its share
    of a core is passed over and counted.
    """
    _start("shadow", application, version, share, until_decided, labels, force, why)


def canary(
    application: ApplicationName,
    version: Version,
    share: Annotated[str, typer.Option("--share", help="of the events that it answers")] = "5%",
    until_decided: UntilDecided = False,
    labels: Labels = None,
    force: Force = False,
    why: Why = NO_REASON,
) -> None:
    """Have a version answer a fixed share of the events, by their ids, in the champion's place.

    Where it has no answer the champion gives one; when that happens again and again, the canary ends.
    """
    _start("canary", application, version, share, until_decided, labels, force, why)


def experiment(
    application: ApplicationName,
    stop: Annotated[bool, typer.Option("--stop", help="end the one that runs")] = False,
    why: Why = NO_REASON,
) -> None:
    """Show the shadow or canary that runs, or the last one, with its figures."""
    settings, packed = packed_application(application)
    name = packed.name
    platform = engine(settings, "platform")
    if stop:
        with mysql_errors(), platform.begin() as connection:
            running = experiment_store.running(connection, name)
            if running is None:
                raise BadInput(f"{name} has no experiment that runs", f"see 'deeplambda model history {name}'")
            experiment_store.still_runs(connection, running)
            experiment_store.end(connection, running, "stopped", why, operator())
        _tell(settings)
    with mysql_errors(), platform.connect() as connection:
        found = experiment_store.newest(connection, name)
    if found is None:
        console.print(f"none yet: 'deeplambda model shadow {name} VERSION'")
        return
    for line in described(found):
        console.print(shown(line))


def described(found: Experiment) -> list[str]:
    """An experiment in lines."""
    ended = f", {found.state} {found.ended_at:%Y-%m-%d %H:%M}Z" if found.ended_at else ", runs"
    lines = [
        f"{found.name}: version {found.version} beside {found.champion}, {found.share:.3g} of "
        f"{'a core' if found.kind == 'shadow' else 'the events'}, since {found.started_at:%Y-%m-%d %H:%M}Z{ended}",
    ]
    if found.who or found.why:
        lines.append(f"begun by {found.who or 'unknown'}{f': {found.why}' if found.why else ''}")
    if found.reason:
        lines.append(f"ended{f' by {found.ended_by}' if found.ended_by else ''}: {found.reason}")
    agreed = f", of which the champion said the same of {found.agreed}" if found.agreed is not None else ""
    lines.append(f"answered {found.answered}{agreed}; failed {found.failed}, shed {found.shed}")
    if found.failure:
        lines.append(f"last failure: {found.failure}")
    lines.append(in_words(found.comparison) if found.comparison else "no label of an answer has come yet")
    return lines


def as_decision(found: Experiment) -> SimpleNamespace:
    """An experiment as `registry.history` has decisions."""
    live = Verdict(version=found.version, comparisons=[found.comparison] if found.comparison else [])
    return SimpleNamespace(
        at=found.started_at,
        kind=f"{found.kind}: {found.state}",
        version=found.version,
        who=found.who,
        why=found.why,
        reason=found.reason,
        verdict=live.model_dump(mode="json"),
    )


def _start(
    kind: Kind,
    application: str,
    version: int,
    share: str,
    until_decided: bool,
    labels: int | None,
    force: bool,
    why: str | None,
) -> None:
    settings, packed = packed_application(application)
    asked: dict[str, Any] = {
        "share": share_of(share),
        "until_decided": until_decided,
        "labels_limit": labels,
        "who": operator(),
        "why": why,
    }
    started = begin(settings, packed, version, kind, force=force, **asked)
    console.print(f"[green]{started.kind} {started.number}[/]: {packed.name}/{version} beside {started.champion}")
    console.print(f"its figures: 'deeplambda model experiment {packed.name}'")


def begin(
    settings: Settings,
    packed: PackedApplication,
    version: int,
    kind: Kind,
    *,
    share: float,
    until_decided: bool,
    labels_limit: int | None = None,
    within: timedelta | None = None,
    force: bool = False,
    verdict: Verdict | None = None,
    who: str | None = None,
    why: str | None = None,
) -> Experiment:
    """Begin an experiment and tell Kafka at once. force: look at the version's artefacts alone. verdict: the gate's,
    where it was asked before.

    Raises: BadInput, Conflict when one runs or the champion has changed since the verdict, UnfitModel when the gate
    would refuse the version, NotReady.
    """
    from batch_layer.gate import judge

    verdict = verdict or judge(settings, packed, version, force=force)
    if verdict.reasons:
        raise UnfitModel(
            f"{packed.name}/{version} was not tried: {'; '.join(verdict.reasons)}",
            "with --force it is tried in spite of its figures",
        )
    at = now()
    with mysql_errors(), engine(settings, "platform").begin() as connection:
        champion = registry.held_champion(connection, packed.name)
        registry.not_overtaken(connection, packed.name, verdict)
        started = experiment_store.start(
            connection,
            Experiment(
                application=packed.name,
                number=0,
                kind=kind,
                version=version,
                champion=champion.version,
                share=share,
                until_decided=until_decided,
                labels_limit=labels_limit,
                who=who,
                why=why,
                verdict=verdict,
                started_at=at,
                until=at + within if within else None,
            ),
            registry.published_card(connection, packed.name, version),
        )
    _tell(settings)
    return started


def share_of(text: str) -> float:
    """`5%` or `0.05`. Raises: BadInput."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise BadInput(f"--share is {text!r}", "give a share above 0 and up to 100%, such as 5%")
    return share


def _tell(settings: Settings) -> None:
    with Publisher(settings) as publisher:
        outbox.relay(engine(settings, "platform"), publisher)
