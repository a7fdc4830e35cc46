"""Tokens: who may do what, for how long; and what does not hold."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from pydantic import SecretStr

from deeplambda.config import Settings
from deeplambda.errors import BadInput, Forbidden, Unauthorized
from deeplambda.service.tokens import authorize, issue

HOUR = timedelta(hours=1)
KEY = "k" * 64


@pytest.fixture
def signing(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, token_key=SecretStr(KEY))


def test_a_token_names_its_bearer(signing: Settings) -> None:
    token = issue(signing, "analyst", "ada", HOUR)
    assert authorize(signing, f"Bearer {token}", "analyst", "operator") == "ada"


def test_another_role_is_forbidden(signing: Settings) -> None:
    with pytest.raises(Forbidden, match="analyst"):
        authorize(signing, f"Bearer {issue(signing, 'analyst', 'ada', HOUR)}", "operator")


def forged(key: str = KEY, algorithm: str = "HS256", **changed: object) -> str:
    claims = {"sub": "eve", "role": "operator", "aud": "deeplambda", "exp": datetime.now(UTC) + HOUR} | changed
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer x.y.z",
        f"Basic {forged()}",
        f"Bearer {forged(key='another key, of a good length: 32')}",
        f"Bearer {forged(exp=datetime.now(UTC) - HOUR)}",
        f"Bearer {forged(exp=None)}",
        f"Bearer {forged(sub=None)}",
        f"Bearer {forged(aud='another platform')}",
        f"Bearer {forged(algorithm='HS512')}",
        f"Bearer {forged(key='', algorithm='none')}",
    ],
)
def test_what_does_not_hold_is_unauthorized(signing: Settings, authorization: str | None) -> None:
    with pytest.raises(Unauthorized):
        authorize(signing, authorization, "analyst", "operator")


@pytest.mark.parametrize("lifetime", [timedelta(), timedelta(days=-1), timedelta(days=400)])
def test_a_token_has_an_end(signing: Settings, lifetime: timedelta) -> None:
    with pytest.raises(BadInput):
        issue(signing, "analyst", "ada", lifetime)
