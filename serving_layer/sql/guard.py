"""What may an analyst's SQL do? Read the tables that are for analysts, and nothing else.

1. The text is split into tokens: one statement, no invisible characters, no comment that some server would run.
2. It is parsed; every syntax node and every function must be on the list in `vocabulary`.
3. Every table that is read must be one of the analysts' tables. A name that a WITH defines counts as a table wherever
   that WITH does not reach.
4. The number of rows is capped.
5. The tree is rendered, comments gone and every name quoted; the rendered text passes steps 1 to 3 once more, and is
   what the server gets. Nobody's text is forwarded as it came.
6. It means what was written: operators apply to what they did, and no name, number or text is lost on the way.

Pure: no service is asked. Behind it, each store has a read-only account for analysts.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlglot import ErrorLevel, exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, SqlglotError, TokenError
from sqlglot.tokens import Token, TokenType

from deeplambda.errors import BadInput
from serving_layer.sql import Store
from serving_layer.sql.dialects import GuardedMySQL, GuardedSpark
from serving_layer.sql.vocabulary import FUNCTIONS, METADATA_TABLES, NAMED_FUNCTIONS, SYNTAX

STATEMENT_LIMIT = 20_000
"""Characters of one statement."""
NESTING_LIMIT = 40
ROW_LIMIT = 10_000
"""The most rows that one answer holds."""

_DIALECTS: dict[Store, Dialect] = {"mysql": GuardedMySQL(), "hive": GuardedSpark()}
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_WORD = re.compile(r"\w+( \w+)*", re.ASCII)
_NUMBER = re.compile(r"[0-9.]+([eE][+-]?[0-9]+)?")
_PIECE = re.compile(r"[^\W\d]+|\d+")  # '$["x"][0]' is $.x[0], INTERVAL '1 day' is INTERVAL '1' DAY
_PLAIN_KEY = re.compile(r"[\w $-]+")
_INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Cn", "Zs", "Zl", "Zp")  # general categories of Unicode
_NAMES, _VALUES = {TokenType.VAR, TokenType.IDENTIFIER}, {TokenType.STRING, TokenType.NUMBER}
_MAY_BE_LEFT_OUT = {"NULLS", "FIRST", "LAST", "SYSTEM_TIME", "SYSTEM_VERSION"}  # where the store does so by itself
_OPERATORS = (exp.Binary, exp.Unary, exp.Between, exp.In)
_NO_OPERATORS = (exp.Paren, exp.Dot, exp.Escape, exp.PropertyEQ, exp.Slice)
_CHAINS = (exp.And, exp.Or, (exp.Add, exp.Sub), (exp.Mul, exp.Div), exp.DPipe)
_OPENING = {TokenType.SELECT, TokenType.WITH, TokenType.L_PAREN}
_LISTING = re.compile(
    r"\s*(?P<verb>SHOW(?=\s+TABLES\b)|DESCRIBE|DESC)(?:\s+TABLES?)?(?:(?:\s+(?:IN|FROM))?\s+(?P<name>[\w.`]+))?\s*;?\s*",
    re.ASCII | re.IGNORECASE,
)
_FUNCTIONS_THERE_ARE = (
    "SELECT from tables with the usual functions of numbers, text, time and JSON, aggregates and windows"
)
_TELL_APART = {  # what people try most, in words of SQL
    exp.Command: "this statement",
    exp.Hint: "an optimizer hint",
    exp.Into: "SELECT … INTO",
    exp.Lock: "a row lock",
    exp.Parameter: "a variable",
    exp.SessionParameter: "a server variable",
    exp.Placeholder: "a placeholder",
    exp.Lambda: "a lambda",
    exp.QueryTransform: "SELECT TRANSFORM",
    exp.Introducer: "a character set introducer",
}


class BadStatement(BadInput):
    """SQL that cannot be read. line, column: where, counted from 1; None when the parser cannot say."""

    def __init__(self, message: str, remedy: str = "", line: int | None = None, column: int | None = None) -> None:
        super().__init__(message, remedy)
        self.args = (message, remedy, line, column)
        self.line, self.column = line, column


class ForbiddenStatement(BadInput):
    """SQL that is well formed and not allowed."""


class ForbiddenTable(ForbiddenStatement):
    """SQL that reads a table which is not there for analysts."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What there is to read. mysql_tables: in `mysql_database`, the ones that analysts may read."""

    mysql_database: str
    mysql_tables: frozenset[str]
    applications: frozenset[str]

    def allows(self, store: Store, name: tuple[str, ...]) -> bool:
        """name: of a table, qualified as it was written, the table last."""
        if not (name and all(_TABLE_NAME.fullmatch(piece) for piece in name)):
            return False
        if store == "mysql":
            return name[:-1] in ((), (self.mysql_database,)) and name[-1] in self.mysql_tables
        match [piece.lower() for piece in name]:
            case ["mysql", database, table]:
                return database == self.mysql_database.lower() and table in self.mysql_tables
            case [application, _] | ["spark_catalog" | "lake", application, _]:
                return application in self.applications
            case ["lake", application, _, detail]:
                return application in self.applications and (
                    detail in METADATA_TABLES or detail.startswith(("branch_", "tag_"))
                )
        return False

    def allows_listing(self, store: Store, name: tuple[str, ...]) -> bool:
        """name: what `SHOW TABLES IN` names; empty for SHOW TABLES alone."""
        if store == "mysql":
            return name in ((), (self.mysql_database,))
        match [piece.lower() for piece in name]:
            case ["mysql", database]:
                return database == self.mysql_database.lower()
            case [application] | ["spark_catalog" | "lake", application]:
                return application in self.applications
        return False


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A statement that may run. It asks for one row more than `row_cap`, so that a cut answer is seen as cut."""

    sql: str
    store: Store
    row_cap: int


def check(sql: str, policy: Policy, store: Store | None = None, row_cap: int = ROW_LIMIT) -> Checked:
    """The statement as it may be forwarded.

    store: None picks MySQL when every table is there, else Hive. row_cap: 1 to ROW_LIMIT.
    Raises: BadStatement, ForbiddenStatement.
    """
    if store is not None:
        return _check(sql, policy, store, row_cap)
    try:
        return _check(sql, policy, "mysql", row_cap)
    except (BadStatement, ForbiddenStatement) as exc:
        in_mysql = exc
    try:
        return _check(sql, policy, "hive", row_cap)
    except BadStatement:
        raise in_mysql from None
    except ForbiddenStatement:
        if isinstance(in_mysql, (BadStatement, ForbiddenTable)):
            raise
        raise in_mysql from None


def _check(sql: str, policy: Policy, store: Store, row_cap: int) -> Checked:
    if listing := _LISTING.fullmatch(sql):
        return Checked(sql=_listing(listing, policy, store), store=store, row_cap=row_cap)
    try:
        tokens = _tokens(sql, store)
        tree = _read(sql, tokens, policy, store)
        limit = _cap_rows(tree, row_cap)
        if store == "mysql":
            _name_columns(tree)
        rendered = _render(tree, store)
        forwarded = _tokens(rendered, store)
        _read(rendered, forwarded, policy, store)
        _check_nothing_is_lost(tokens, forwarded, limit)
    except ParseError as exc:
        raise _syntax_error(exc) from exc
    except TokenError as exc:
        raise BadStatement(f"the statement cannot be read: {exc}", "close every quote and comment") from exc
    except RecursionError as exc:
        raise ForbiddenStatement("the statement is nested too deep", "simplify it") from exc
    except SqlglotError as exc:
        raise ForbiddenStatement(f"the statement cannot be passed on: {exc}", "say it in another way") from exc
    except (AttributeError, LookupError, TypeError, ValueError) as exc:  # sqlglot, of functions with too few arguments
        raise BadStatement("the statement cannot be read", "see to the arguments of each function") from exc
    return Checked(sql=rendered, store=store, row_cap=row_cap)


def _tokens(sql: str, store: Store) -> list[Token]:
    if len(sql) > STATEMENT_LIMIT:
        raise ForbiddenStatement(f"the statement is longer than {STATEMENT_LIMIT} characters", "shorten it")
    for character in sql:
        if character not in " \t\r\n" and unicodedata.category(character) in _INVISIBLE:
            raise ForbiddenStatement(
                f"the statement holds the invisible or unassigned character U+{ord(character):04X}", "take it out"
            )
    if store == "hive" and "${" in sql:
        raise ForbiddenStatement("'${' stands for a server variable in Spark", "write it as concat('$', '{')")
    tokens: list[Token] = _DIALECTS[store].tokenize(sql)
    for comment in (comment for token in tokens for comment in token.comments):
        if comment[:1].strip() or "/*" in comment or "*/" in comment:
            raise ForbiddenStatement(
                f"the comment {comment[:20]!r} could be run as code by a server",
                "start each comment with a space and do not nest them",
            )
    while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        tokens.pop()
    if not tokens:
        raise BadStatement("there is no statement", "send one SELECT")
    if any(token.token_type == TokenType.SEMICOLON for token in tokens):
        raise ForbiddenStatement("there is more than one statement", "send one at a time")
    if tokens[0].token_type not in _OPENING:
        raise ForbiddenStatement(
            f"{tokens[0].text.upper()[:20]} is not allowed", "only SELECT, WITH, SHOW TABLES and DESCRIBE are"
        )
    depth = 0
    for token in tokens:
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if depth > NESTING_LIMIT:
            raise ForbiddenStatement(f"parentheses are nested deeper than {NESTING_LIMIT}", "simplify the statement")
    return tokens


def _read(sql: str, tokens: list[Token], policy: Policy, store: Store) -> exp.Query:
    tree = _parse(sql, tokens, store)
    if tree is None:
        raise BadStatement("there is no statement", "send one SELECT")
    for node in tree.walk():
        _check_node(node, policy, store)
    if not isinstance(tree, exp.Query):
        raise ForbiddenStatement(f"{tree.key.upper()} is not allowed", "only reading is")
    for table in _tables(tree, frozenset()):
        name = tuple(piece.name for piece in table.parts)
        if not policy.allows(store, name):
            raise _no_such_table(name, policy, store)
    return tree


def _parse(sql: str, tokens: list[Token], store: Store) -> exp.Expression | None:
    (tree,) = _DIALECTS[store].parser(error_level=ErrorLevel.IMMEDIATE).parse(tokens, sql)
    return tree


def _check_node(node: exp.Expression, policy: Policy, store: Store) -> None:
    kind = type(node)
    if kind is exp.Anonymous:
        name = str(node.name).lower()
        scores = store == "hive" and name.removeprefix("predict_") in policy.applications and name[:8] == "predict_"
        if not (name in NAMED_FUNCTIONS or scores):
            raise ForbiddenStatement(f"the function {name[:64]!r} is not allowed", _FUNCTIONS_THERE_ARE)
    elif kind not in SYNTAX and kind not in FUNCTIONS:
        what = _TELL_APART.get(kind) or (
            f"the function {node.sql_name()!r}" if isinstance(node, exp.Func) else node.key
        )
        raise ForbiddenStatement(f"{what} is not allowed", _FUNCTIONS_THERE_ARE)
    if isinstance(node.parent, exp.Dot) and isinstance(node, exp.Func):
        raise ForbiddenStatement("a function of a schema is not allowed", "call a function by its name alone")
    if not _plain(node):
        raise ForbiddenStatement(f"{str(node.name)[:40]!r} cannot be passed on", "use plain names")
    if isinstance(node, exp.Table) and not all(isinstance(piece, exp.Identifier) for piece in node.parts):
        raise ForbiddenStatement("a table function is not allowed", "SELECT from tables")


def _plain(node: exp.Expression) -> bool:
    """Whether the raw text that `node` carries is what its kind calls for."""
    if isinstance(node, exp.Identifier):
        return "`" not in node.name and len(node.name) <= 128
    if isinstance(node, exp.Var):
        return bool(_WORD.fullmatch(node.name))
    if isinstance(node, exp.Literal):
        return node.is_string or bool(_NUMBER.fullmatch(node.name))
    if isinstance(node, exp.JSONPathKey):
        return isinstance(node.this, exp.Expression) or bool(_PLAIN_KEY.fullmatch(str(node.this)))
    return not (isinstance(node, exp.DataType) and node.this == exp.DataType.Type.USERDEFINED)


def _tables(node: exp.Expression, defined: frozenset[str]) -> Iterator[exp.Table]:
    """The tables that are read for real; `defined` are the names that a WITH around `node` gives."""
    with_ = next((argument for argument in node.args.values() if isinstance(argument, exp.With)), None)
    if with_ is not None:
        for cte in with_.expressions:
            yield from _tables(cte.this, defined | {cte.alias} if with_.recursive else defined)
            defined |= {cte.alias}
    if isinstance(node, exp.Table) and not (len(node.parts) == 1 and node.name in defined):
        yield node
    for child in node.iter_expressions():
        if child is not with_:
            yield from _tables(child, defined)


def _cap_rows(tree: exp.Query, row_cap: int) -> str:
    """Returns the limit that was written, if any."""
    asked, written = row_cap + 1, ""
    if (limit := tree.args.get("limit")) is not None:
        number = limit.expression if isinstance(limit, exp.Limit) else None
        if not (isinstance(number, exp.Literal) and number.name.isdecimal()):
            raise ForbiddenStatement("LIMIT takes a plain number", "write LIMIT 100")
        written = str(number.name)
        asked = min(asked, int(written))
    tree.set("limit", exp.Limit(expression=exp.Literal.number(asked)))
    return written


def _render(tree: exp.Query, store: Store) -> str:
    """As text in which each operator applies to what it does in `tree`, as the text with all parentheses has it."""
    plain = _generate(tree, store)
    if _bare(plain, store) != _bare(_generate(_in_parentheses(tree), store), store):
        raise ForbiddenStatement("an operator could be taken to apply to something else", "write parentheses around it")
    return plain


def _generate(tree: exp.Expression, store: Store) -> str:
    generator = _DIALECTS[store].generator(identify=True, comments=False, unsupported_level=ErrorLevel.RAISE)
    return str(generator.generate(tree))


def _in_parentheses(tree: exp.Query) -> exp.Expression:
    """A copy with parentheses around whatever an operator makes; not around the first of `a AND b AND c`."""
    copied = tree.copy()
    for node in list(copied.find_all(*_OPERATORS)):
        is_first = node.arg_key == "this" and any(
            isinstance(node, kind) and isinstance(node.parent, kind) for kind in _CHAINS
        )
        if not (isinstance(node, _NO_OPERATORS) or isinstance(node.parent, (exp.Paren, exp.Escape)) or is_first):
            parentheses = exp.Paren()
            node.replace(parentheses)
            parentheses.set("this", node)
    return copied


def _bare(sql: str, store: Store) -> exp.Expression | None:
    """The tree of a text, without its parentheses."""
    tree = _parse(sql, _DIALECTS[store].tokenize(sql), store)
    for parentheses in list(tree.find_all(exp.Paren)) if tree else ():
        parentheses.replace(parentheses.this)
    return tree


def _check_nothing_is_lost(written: list[Token], forwarded: list[Token], limit: str) -> None:
    """Each name is still a name, and each number and text is there, as often as it was written; `limit` may be gone."""
    values = Counter(_words(token for token in written if token.token_type in _VALUES))
    lost = _names(written) - _names(forwarded) + (values - Counter(_words(forwarded)) - Counter([limit]))
    if lost:
        raise ForbiddenStatement(
            f"{next(iter(lost))[:40]!r} cannot be passed on where it stands", "say it in another way"
        )


def _names(tokens: list[Token]) -> Counter[str]:
    following = (*(token.token_type for token in tokens[1:]), None)
    return Counter(
        token.text.lower().rstrip("s")  # MINUTES is MINUTE
        for token, next_type in zip(tokens, following, strict=True)
        if token.token_type in _NAMES and next_type != TokenType.L_PAREN and token.text.upper() not in _MAY_BE_LEFT_OUT
    )


def _words(tokens: Iterable[Token]) -> Iterator[str]:
    return (word.lower() for token in tokens for word in _PIECE.findall(token.text))


def _name_columns(tree: exp.Query) -> None:
    """Name what has no name after its text; MySQL would name it after the quoted text that it gets."""
    for column in tree.selects if isinstance(tree, exp.Select) else ():
        name = column.sql(dialect=_DIALECTS["mysql"], comments=False)
        if not isinstance(column, (exp.Column, exp.Alias, exp.Star)) and "`" not in name and name.isprintable():
            column.replace(exp.alias_(column.copy(), name[:64].strip(), quoted=True))


def _listing(statement: re.Match[str], policy: Policy, store: Store) -> str:
    """`SHOW TABLES [IN schema]` or `DESCRIBE [TABLE] table`, written anew."""
    name = tuple(piece.strip("`") for piece in statement["name"].split(".")) if statement["name"] else ()
    quoted = ".".join(f"`{piece}`" for piece in name)
    if statement["verb"].upper() != "SHOW":
        if not policy.allows(store, name):
            raise _no_such_table(name, policy, store)
        return f"DESCRIBE {quoted}"
    if not policy.allows_listing(store, name):
        raise ForbiddenTable(
            f"there is nothing to list for analysts in {store} under {'.'.join(name) or 'no name'!r}",
            _where_tables_are(policy, store),
        )
    return f"SHOW TABLES IN {quoted}" if name else "SHOW TABLES"


def _no_such_table(name: tuple[str, ...], policy: Policy, store: Store) -> ForbiddenTable:
    return ForbiddenTable(
        f"there is no table {'.'.join(name)[:200]!r} for analysts in {store}", _where_tables_are(policy, store)
    )


def _where_tables_are(policy: Policy, store: Store) -> str:
    if store == "mysql":
        return f"there are {', '.join(sorted(policy.mysql_tables))}"
    some = ", ".join(f"lake.{name}.*, {name}.all_predictions" for name in sorted(policy.applications))
    return f"there are {some} and mysql.{policy.mysql_database}.*"


def _syntax_error(exc: ParseError) -> BadStatement:
    first = exc.errors[0] if exc.errors else {}
    near = f" near {first['highlight'][:40]!r}" if first.get("highlight") else ""
    what = str(first.get("description", "it is not SQL")).partition(" but got <")[0]
    if what.startswith("Required keyword"):
        what = "something is missing there"
    return BadStatement(
        f"the statement cannot be read{near}: {what.rstrip('.')}",
        "fix its syntax",
        first.get("line"),
        first.get("col"),
    )
