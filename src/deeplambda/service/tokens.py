"""Tokens: who may do what over HTTP, for how long.

A token is a JSON Web Token (RFC 7519), signed with HMAC-SHA-256 by the platform's own `token_key`. It names its bearer
and one role, and it expires. A new key makes all tokens invalid.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

import jwt

from deeplambda.config import Settings
from deeplambda.errors import BadInput, ConfigurationError, Forbidden, Unauthorized

Role = Literal["analyst", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
_ALGORITHM = "HS256"
_AUDIENCE = "deeplambda"
_LONGEST = timedelta(days=366)


def issue(settings: Settings, role: Role, bearer: str, lifetime: timedelta) -> str:
    """A token for `bearer`. Raises: BadInput; ConfigurationError without a key."""
    if role not in ROLES:
        raise BadInput(f"no role {role!r}", f"there are {', '.join(ROLES)}")
    if not timedelta() < lifetime <= _LONGEST:
        raise BadInput("a token is valid for more than 0 and at most 366 days", "give a number of days in that range")
    if not settings.token_key.get_secret_value():
        raise ConfigurationError(
            "there is no key to sign tokens with yet", "'deeplambda up' makes the secret 'token_key'"
        )
    claims = {"sub": bearer, "role": role, "aud": _AUDIENCE, "exp": datetime.now(UTC) + lifetime}
    return jwt.encode(claims, settings.token_key.get_secret_value(), _ALGORITHM)


def authorize(settings: Settings, authorization: str | None, *roles: Role) -> str:
    """The bearer of a token of one of `roles`. authorization: the header of that name.

    Raises: Unauthorized without a valid token, Forbidden when it is of another role.
    """
    if not settings.token_key.get_secret_value():  # an empty key would let everybody sign
        raise Unauthorized("this service has no key to check tokens with", "give it the secret 'token_key'")
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("this needs a token", "send 'Authorization: Bearer …'; 'deeplambda serve token' makes one")
    try:
        claims = jwt.decode(
            token.strip(),
            settings.token_key.get_secret_value(),
            [_ALGORITHM],
            audience=_AUDIENCE,
            options={"require": ["sub", "exp", "aud"]},
        )
    except jwt.ExpiredSignatureError as exc:
        raise Unauthorized("the token has expired", "get a new one: 'deeplambda serve token'") from exc
    except jwt.InvalidTokenError as exc:
        raise Unauthorized("the token is not valid", "get one: 'deeplambda serve token'") from exc
    if claims.get("role") not in roles:
        raise Forbidden(f"a token of the role {claims.get('role')!r} may not do this", f"roles: {', '.join(roles)}")
    return str(claims["sub"])
