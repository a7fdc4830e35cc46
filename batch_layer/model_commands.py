"""`deeplambda model`: what was published, and which of it serves."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from pydantic_core import from_json, to_json
from rich import box
from rich.table import Table
from sqlalchemy import select

from batch_layer import experiment_commands
from batch_layer.command_start import ApplicationName, console, packed_application
from batch_layer.experiment_commands import NO_REASON, Version, Why
from deeplambda.adapters.mysql import engine, mysql_errors
from deeplambda.application import metric_names
from deeplambda.config import Settings
from deeplambda.errors import BadInput
from deeplambda.metrics import lower_is_better
from deeplambda.records.shown import as_json, shown
from deeplambda.records.verdict import Comparison, Verdict
from deeplambda.state import experiment_store, registry
from deeplambda.state.card import Card
from deeplambda.state.data_changes import operator
from deeplambda.state.tables import DRIFT_WINDOWS, MODEL_VERSIONS

app = typer.Typer(no_args_is_help=True)
for command in (experiment_commands.shadow, experiment_commands.canary, experiment_commands.experiment):
    app.command()(command)


@app.command("list")
def list_versions(application: ApplicationName) -> None:
    """Show every version with its metrics on the test split, newest first; ★ marks the champion, which serves.

    ↑: of the metric, higher is better; ↓: lower. 'deeplambda model show' tells the rest of a version: its data, hashes.
    """
    settings, packed = packed_application(application)
    cards, champion = _versions(settings, packed.name)
    made = packed.load()
    lower = {name: lower_is_better(made, name) for name in metric_names(made)}
    console.print(versions_table(cards, champion, lower, packed.code_version))
    if not cards:
        console.print(f"nothing published yet: 'deeplambda batch run {packed.name}' trains and publishes")


def versions_table(cards: list[Card], champion: Card | None, lower: Mapping[str, bool], deployed: str) -> Table:
    """A row for each version; fits 80 columns, where a long name or value goes on in the next line.

    lower: by metric, whether lower is better. deployed: the code version of the application as it is here.
    """
    table = Table("", "version", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    headings = [f"{name} {'↓' if is_lower else '↑'}" for name, is_lower in lower.items()]
    for heading in (*headings, "rows", "trained"):
        table.add_column(heading, overflow="fold")
    table.add_column("code", min_width=13, no_wrap=True)
    for card in cards:
        table.add_row(
            "★" if champion is not None and card.version == champion.version else "",
            str(card.version),
            *(f"{card.metrics[name]:.4f}" if name in card.metrics else "" for name in lower),
            f"{card.trained_rows:,}",
            f"{card.created_at:%Y-%m-%d %H:%M}Z",
            card.code_version if card.code_version == deployed else f"{card.code_version}\nnot deployed",
        )
    return table


@app.command("show")
def show(application: ApplicationName, version: Version) -> None:
    """Print a version's card: which data, code and hyperparameters made it, how good it is, its hashes.

    `decided` is the gate's newest verdict on it, with its figures, who asked and why.
    """
    settings, packed = packed_application(application)
    with mysql_errors(), engine(settings, "platform").connect() as connection:
        card = registry.published_card(connection, packed.name, version)
        judged = (row._asdict() for row in registry.history(connection, packed.name, version=version))
        decided = next((decision for decision in judged if decision["verdict"]), None)
    console.print(as_json(from_json(to_json(card.model_dump() | {"decided": decided}))), soft_wrap=True)


@app.command("verify")
def verify(application: ApplicationName, version: Version) -> None:
    """Check a version's artefacts on S3 against its card: hashes, finite weights, the shape of its outputs."""
    from batch_layer.gate import verify as verify_version

    settings, packed = packed_application(application)
    card = verify_version(settings, packed, version)
    console.print(f"[green]sound[/]: {packed.name}/{version}, weights {card.weights_sha256}")


@app.command("promote")
def promote(
    application: ApplicationName,
    version: Annotated[int | None, typer.Argument(help="default: the newest", min=1)] = None,
    force: Annotated[bool, typer.Option("--force", help="even when it is worse or its code is not deployed")] = False,
    why: Why = NO_REASON,
) -> None:
    """Make a version the champion: services load it at once.

    A version is refused when its first metric is worse than the champion's by more than the application's margin, both
    measured now on the same rows, or worse by that than the best version so far; docs/loop.md has the other rules. It
    is refused, too, when its code is no longer the deployed one. One whose artefacts are broken is refused even with
    --force.
    """
    from batch_layer.gate import promote as promote_version

    settings, packed = packed_application(application)
    chosen = version or _newest(settings, packed.name)
    change = promote_version(settings, packed, chosen, force=force, who=operator(), why=why)
    if change is None:
        console.print(f"{packed.name}/{chosen} is the champion already")
    else:
        console.print(f"[green]champion[/]: {packed.name}/{change.version}{_after(change.previous)}")


@app.command("rollback")
def rollback(
    application: ApplicationName,
    to: Annotated[int | None, typer.Option("--to", help="any that has served; default: the one before", min=1)] = None,
    why: Why = NO_REASON,
) -> None:
    """Make an earlier champion serve again, within seconds.

    Generations that nobody asked for promote nothing from then on, until a person has promoted a version.
    """
    from batch_layer.gate import roll_back

    settings, packed = packed_application(application)
    back = roll_back(settings, packed.name, to, who=operator(), why=why)
    console.print(f"[yellow]rolled back[/]: {back.application}/{back.version} serves again{_after(back.previous)}")


@app.command("history")
def history(
    application: ApplicationName,
    rows: Annotated[int, typer.Option("--rows", "-n", help="how many of the newest", min=1)] = 20,
) -> None:
    """Show promotions, rejections, rollbacks and experiments, newest first: who, when, why, and what the gate found."""
    settings, packed = packed_application(application)
    with mysql_errors(), engine(settings, "platform").connect() as connection:
        decided: list[Any] = list(registry.history(connection, packed.name, rows))
        tried = map(experiment_commands.as_decision, experiment_store.listed(connection, packed.name, rows))
    decisions = sorted([*decided, *tried], key=lambda each: each.at, reverse=True)[:rows]
    console.print(history_table(decisions))
    if not decisions:
        console.print(f"nothing decided yet: 'deeplambda model promote {packed.name}'")


def history_table(decisions: Sequence[Any]) -> Table:
    """A row for each of what `registry.history` gives; fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("when", "what", "who and why", "the gate's figures"):
        table.add_column(heading, overflow="fold")
    for each in decisions:
        verdict = Verdict.model_validate(each.verdict) if each.verdict else None
        said = [f"{each.who or 'unknown'}: {each.why}" if each.why else each.who or "", each.reason or ""]
        table.add_row(
            f"{each.at:%Y-%m-%d %H:%M}Z",
            f"{each.version} {each.kind.replace('_', ' ')}",
            shown("\n".join(filter(None, said))),
            shown("\n".join(map(_figure, verdict.comparisons if verdict else ()))),
        )
    return table


@app.command("drift")
def drift(
    application: ApplicationName,
    rows: Annotated[int, typer.Option("--rows", "-n", help="how many windows of each kind", min=1)] = 10,
) -> None:
    """Show the newest windows of live events, and how far they are from those that the champion was judged by.

    Inputs, predictions and, where labels come, answers are watched. An alarm stands where the value has reached the
    threshold, until a window is as before; docs/loop.md says what the figures mean.
    """
    settings, packed = packed_application(application)
    table = DRIFT_WINDOWS.c
    with mysql_errors(), engine(settings, "platform").connect() as connection:
        windows = [
            window
            for what in ("inputs", "predictions", "accuracy")
            for window in connection.execute(
                select(DRIFT_WINDOWS)
                .where(table.application == packed.name, table.what == what)
                .order_by(table.id.desc())
                .limit(rows)
            )
        ]
    console.print(drift_table(windows))
    if not windows:
        console.print("no window is full yet: see 'deeplambda status' for the part archive, which watches")


def drift_table(windows: Sequence[Any]) -> Table:
    """A row for each row of `drift_windows`; fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("what", "version", "until", "value", "threshold", "clearest field"):
        table.add_column(heading, overflow="fold")
    for each in windows:
        (clearest, *_) = each.evidence["fields"]
        table.add_row(
            f"[red]{each.what}[/]" if each.drifted else each.what,
            str(each.version),
            f"{each.last_at:%Y-%m-%d %H:%M:%S}Z",
            f"{each.value:.3g}",
            f"{each.threshold:.3g}",
            shown(f"{clearest['field']}: p {clearest['p']:.2g}, PSI {clearest['psi']:.2f}"),
        )
    return table


def _figure(comparison: Comparison) -> str:
    bounded = comparison.low is not None and comparison.high is not None
    interval = f" [{comparison.low:+.4f}, {comparison.high:+.4f}]" if bounded else ""
    where = f" {comparison.slice}" if comparison.slice else ""
    return (
        f"{comparison.split}{where}: {comparison.metric} {comparison.candidate:.4f}, {comparison.role} "
        f"{comparison.against} {comparison.other:.4f}{interval}"
    )


def _versions(settings: Settings, application: str) -> tuple[list[Card], Card | None]:
    query = (
        select(MODEL_VERSIONS.c.card)
        .where(MODEL_VERSIONS.c.application == application)
        .order_by(MODEL_VERSIONS.c.version.desc())
    )
    with mysql_errors(), engine(settings, "platform").connect() as connection:
        cards = [Card.model_validate(card) for card in connection.scalars(query)]
        return cards, registry.champion(connection, application)


def _newest(settings: Settings, application: str) -> int:
    cards, _ = _versions(settings, application)
    if not cards:
        raise BadInput(f"{application} has no model version", f"train one: 'deeplambda batch run {application}'")
    return cards[0].version


def _after(previous: int | None) -> str:
    return "" if previous is None else f" (before: {previous})"
