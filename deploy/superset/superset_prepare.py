"""What has to be there before Superset serves: its tables, its roles, the account `admin`, both stores, the dashboard.

`python -m superset_prepare`, idempotent: what the assets describe is put back as they describe it, and the password of
`admin` is the secret's again.
"""

import sys
from pathlib import Path

from superset.app import create_app
from superset_config import secret

ASSETS = Path(__file__).with_name("assets")
_SLUG = "deeplambda"


def main() -> int:
    """Prepare; returns the exit status."""
    app = create_app()
    with app.app_context():
        # Only now can the rest of Superset be loaded. One process runs all of its commands, for each loads it anew.
        from superset import db
        from superset.cli.main import superset
        from superset.models.dashboard import Dashboard

        for command in (["db", "upgrade"], ["init"]):
            superset.main(command, standalone_mode=False)
        _admit("admin", secret("superset_admin_password"))
        superset.main(["import-directory", "--overwrite", str(ASSETS)], standalone_mode=False)
        if not db.session.query(Dashboard).filter_by(slug=_SLUG).count():  # a bad asset is only logged
            print(f"the dashboard {_SLUG} is not there: see above for what is wrong with {ASSETS}", file=sys.stderr)
            return 1
    return 0


def _admit(name: str, password: str) -> None:
    from superset import security_manager

    if user := security_manager.find_user(username=name):
        security_manager.reset_password(user.id, password)
    else:
        role = security_manager.find_role("Admin")
        security_manager.add_user(name, "DeepLambda", name, f"{name}@localhost", role, password)


if __name__ == "__main__":
    sys.exit(main())
