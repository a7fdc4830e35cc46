"""Parameters of statements for the gateway, as Spark's literals."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from pyhive.exc import ProgrammingError

from deeplambda.adapters.hive_dialect import ParameterEscaper

CEST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("parameter", "literal"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=CEST), "'2026-01-02 01:04:05.000006'"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "'2026-01-02 03:04:05.000000'"),
        (datetime(2026, 1, 2, 3, 4, 5), "'2026-01-02 03:04:05.000000'"),  # of the session's zone
        (date(2026, 1, 2), "'2026-01-02'"),
        (Decimal("1.10"), "1.10BD"),
        (Decimal("1E+3"), "1000BD"),
        (np.int64(7), "7"),
        (np.float32(0.5), "0.5"),
        (np.bool_(True), "True"),
        ([np.int64(1), Decimal("2.5")], "(1,2.5BD)"),
        ("it's", r"'it\'s'"),
        (None, "NULL"),
    ],
)
def test_a_parameter_keeps_its_value(parameter: Any, literal: str) -> None:
    assert str(ParameterEscaper().escape_item(parameter)) == literal


def test_what_has_no_literal_is_refused() -> None:
    with pytest.raises(ProgrammingError):
        ParameterEscaper().escape_item(Decimal("NaN"))
