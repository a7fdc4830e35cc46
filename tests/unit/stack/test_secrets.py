import stat

from pydantic import SecretStr

from deeplambda.config import Settings, load_settings
from deeplambda.stack.secrets import make_missing_secrets

FIELDS = {
    "s3_secret_key",
    "mysql_root_password",
    "mysql_metastore_password",
    "mysql_platform_password",
    "mysql_views_password",
    "mysql_queries_password",
    "mysql_reader_password",
    "mysql_superset_password",
    "analyst_password",
    "grafana_admin_password",
    "kafka_password",
    "kafka_producer_password",
    "mqtt_bridge_password",
    "mqtt_producer_password",
    "ray_token",
    "spark_secret",
    "superset_admin_password",
    "superset_secret_key",
    "token_key",
}


def reloaded(settings: Settings) -> Settings:
    load_settings.cache_clear()
    return load_settings(settings.data_dir)


def test_every_empty_secret_gets_a_random_value_of_its_own(settings: Settings) -> None:
    assert set(make_missing_secrets(settings, settings.data_dir / "secrets")) == FIELDS
    values = {getattr(reloaded(settings), field).get_secret_value() for field in FIELDS}
    assert len(values) == len(FIELDS)
    assert all(len(value) >= 32 for value in values)


def test_nobody_else_can_read_them(settings: Settings) -> None:
    make_missing_secrets(settings, settings.data_dir / "secrets")
    folder = settings.data_dir / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_a_secret_that_is_there_stays(settings: Settings) -> None:
    make_missing_secrets(settings, settings.data_dir / "secrets")
    first = reloaded(settings)
    assert make_missing_secrets(first, first.data_dir / "secrets") == []
    assert reloaded(settings).analyst_password == first.analyst_password


def test_a_secret_that_is_configured_is_not_made(settings: Settings) -> None:
    configured = settings.model_copy(update={"analyst_password": SecretStr("mine")})
    assert set(make_missing_secrets(configured, configured.data_dir / "secrets")) == FIELDS - {"analyst_password"}
