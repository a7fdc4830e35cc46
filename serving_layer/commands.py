"""The serving layer's commands: `deeplambda sql`, `deeplambda serve`."""

import csv
import sys
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deeplambda.config import load_settings, secrets_dir
from deeplambda.errors import UnknownApplication
from deeplambda.records.shown import shown
from serving_layer.sql import StoreChoice

sql = typer.Typer()
serve = typer.Typer(no_args_is_help=True)
console = Console(width=None if sys.stdout.isatty() else 200)

_NUMBERS = {"bigint", "int", "smallint", "tinyint", "double", "float", "decimal"}
_CELL_CHARACTERS = 80
_MORE = " (there are more: see --limit)"


@sql.command("sql")
def run_sql(
    statement: Annotated[str, typer.Argument(help="one SELECT, SHOW TABLES or DESCRIBE; '-' reads it from the input")],
    store: Annotated[StoreChoice, typer.Option(help="the store to ask; auto: MySQL when it has every table")] = "auto",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="rows at most")] = 1_000,
    as_json: Annotated[bool, typer.Option("--json", help="print the service's answer as JSON")] = False,
    as_csv: Annotated[
        bool,
        typer.Option("--csv", help="print CSV with a header; to a spreadsheet what begins with = + - @ is a formula"),
    ] = False,
) -> None:
    """Ask recent data (MySQL) or the whole archive (Hive) in SQL.

    deeplambda sql "SELECT prediction, count(*) FROM realtime_predictions GROUP BY prediction"

    deeplambda sql "SELECT view, count(*) FROM digits.all_predictions GROUP BY view"
    """
    from pydantic_core import to_json

    from serving_layer.query_client import ask

    settings = load_settings()
    text = sys.stdin.read() if statement == "-" else statement
    with Console(stderr=True).status("asking") as status:
        answer = ask(settings, text, store=store, limit=limit, on_status=status.update)
    if as_json:
        print(to_json(answer, indent=2).decode())
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(column["name"] for column in answer["columns"])
        writer.writerows(answer["rows"])
    else:
        _print_table(answer)
    if answer["truncated"] and (as_json or as_csv):
        print(f"{answer['row_count']:,} rows{_MORE}", file=sys.stderr)


@serve.command("url")
def serve_url() -> None:
    """Print the serving layer's addresses, and the account that connects to each."""
    settings = load_settings()
    password = secrets_dir(settings.data_dir) / "deeplambda_analyst_password"
    table = Table.grid(padding=(0, 3))
    for what, where in (
        ("page for people", f"{settings.query_url}/"),
        ("queries over HTTP", f"{settings.query_url}/v1/queries"),
        ("OpenAPI", f"{settings.query_url}/openapi.json"),
        ("SQL over both stores", f"hive://analyst@{settings.hive_address}/default?auth=CUSTOM"),
        ("SQL over recent data", f"mysql+pymysql://analyst@{settings.mysql_address}/{settings.mysql_database}"),
        ("the analyst's password", str(password)),
    ):
        table.add_row(f"[bold]{what}", shown(where))
    console.print(table, soft_wrap=True)


@serve.command("token")
def serve_token(
    bearer: Annotated[str, typer.Argument(help="who it is for; their name stands in it")],
    role: Annotated[str, typer.Option(help="analyst or operator")] = "analyst",
    days: Annotated[float, typer.Option(help="how long it holds")] = 30,
) -> None:
    """Print a token for the query service, where it asks for one. Run where the platform's secrets are."""
    from typing import cast

    from deeplambda.service import tokens

    print(tokens.issue(load_settings(), cast(tokens.Role, role), bearer, timedelta(days=days)))


@serve.command("status")
def serve_status(
    application: Annotated[str | None, typer.Argument(help="default: the first that is served")] = None,
) -> None:
    """Print the horizon between batch view and real-time view, and how many rows are on each side of it."""
    from serving_layer.status import serving_status

    settings = load_settings()
    name = application or next(iter(settings.applications), "")
    if name not in settings.applications:
        raise UnknownApplication(
            f"{name!r} is not served", f"there are {', '.join(settings.applications)}; see DEEPLAMBDA_APPLICATIONS"
        )
    table = Table.grid(padding=(0, 3))
    for what, value in serving_status(settings, name).items():
        table.add_row(f"[bold]{what}", shown(value))
    console.print(table, soft_wrap=True)


def _print_table(answer: dict[str, Any]) -> None:
    table = Table()
    for column in answer["columns"]:
        table.add_column(shown(column["name"]), justify="right" if column["type"] in _NUMBERS else "left")
    for row in answer["rows"]:
        table.add_row(*(_shown(value) for value in row))
    rows = f"{answer['row_count']:,} row{'' if answer['row_count'] == 1 else 's'}"
    more = _MORE if answer["truncated"] else ""
    console.print(table)
    console.print(f"[dim]{rows}{more} from {answer['store']} in {answer['elapsed_ms']:,.0f} ms", highlight=False)


def _shown(value: Any) -> str:
    if value is None:
        return "[dim]NULL"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return shown(text if len(text) <= _CELL_CHARACTERS else f"{text[: _CELL_CHARACTERS - 1]}…")
