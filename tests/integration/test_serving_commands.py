"""`deeplambda sql` and `deeplambda serve`, as a person types them."""

import csv
import io
from collections.abc import Callable
from subprocess import CompletedProcess

from pydantic_core import from_json

from deeplambda.config import Settings

Command = Callable[..., "CompletedProcess[str]"]


def test_sql_prints_a_table(stack: Settings, deeplambda: Command) -> None:
    printed = deeplambda("sql", "SELECT 'seven' AS word, 7 AS number, NULL AS nothing").stdout
    assert "word" in printed
    assert "seven" in printed
    assert "NULL" in printed
    assert "1 row from mysql" in printed


def test_sql_waits_for_hive(stack: Settings, deeplambda: Command) -> None:
    printed = deeplambda("sql", "SELECT COUNT(*) AS n FROM lake.digits.models", "--json").stdout
    answer = from_json(printed)
    assert answer["store"] == "hive"
    assert answer["columns"] == [{"name": "n", "type": "bigint"}]


def test_sql_prints_csv_and_says_nothing_else(stack: Settings, deeplambda: Command) -> None:
    printed = deeplambda("sql", "SELECT 'a,b' AS x, 1 AS y", "--csv").stdout
    assert list(csv.reader(io.StringIO(printed))) == [["x", "y"], ["a,b", "1"]]


def test_sql_says_of_cut_rows_that_there_are_more(stack: Settings, deeplambda: Command) -> None:
    for form in ("--csv", "--json"):
        done = deeplambda("sql", "SELECT 1 AS x UNION ALL SELECT 2", form, "--limit", "1")
        assert "1 rows (there are more" in done.stderr
        assert "more" not in done.stdout


def test_sql_says_what_is_wrong_and_fails(stack: Settings, deeplambda: Command) -> None:
    refused = deeplambda("sql", "SELECT * FROM mysql.user", check=False)
    assert refused.returncode == 1
    assert "mysql.user" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_serve_tells_where_and_how_things_are(stack: Settings, deeplambda: Command) -> None:
    assert stack.query_url in deeplambda("serve", "url").stdout
    standing = deeplambda("serve", "status", "digits").stdout
    assert "horizon" in standing
    assert "real-time rows" in standing
    unknown = deeplambda("serve", "status", "nope", check=False)
    assert unknown.returncode == 1
    assert "nope" in unknown.stderr
