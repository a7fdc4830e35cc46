"""The bucket is made where the settings say, or it is said why it cannot be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber
from pydantic import SecretStr

from deeplambda.adapters.s3 import s3_client
from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError, NotReady
from deeplambda.stack import probes, provision


def of_aws(folder: Path, region: str) -> Settings:
    return Settings(
        data_dir=folder,
        s3_endpoint=f"https://s3.{region}.example",
        s3_region=region,
        s3_bucket="ours",
        s3_secret_key=SecretStr("known"),
    )


@pytest.fixture(params=["eu-central-1", "us-east-1"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return of_aws(tmp_path, request.param)


@pytest.fixture
def answers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    """S3's answers, in order."""
    client = s3_client(settings)
    for module in ("deeplambda.adapters.s3", "deeplambda.stack.probes"):
        monkeypatch.setattr(f"{module}.s3_client", lambda *_, **__: client)
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


def test_a_bucket_that_is_missing_is_made_in_the_region_of_the_settings(settings: Settings, answers: Stubber) -> None:
    place: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": "eu-central-1"}}
    answers.add_client_error("head_bucket", "404", http_status_code=404)
    answers.add_response("create_bucket", {}, {"Bucket": "ours"} | (place if "eu" in settings.s3_region else {}))
    provision.s3_bucket(settings)


def test_a_bucket_that_is_there_is_left_and_needs_no_right_to_make_one(settings: Settings, answers: Stubber) -> None:
    answers.add_response("head_bucket", {}, {"Bucket": "ours"})
    provision.s3_bucket(settings)


@pytest.mark.parametrize("code", ["403", "301"])
def test_a_bucket_of_somebody_else_is_named_with_the_settings_to_look_at(
    code: str, settings: Settings, answers: Stubber
) -> None:
    for _ in range(2):
        answers.add_client_error("head_bucket", code, http_status_code=int(code))
    with pytest.raises(ConfigurationError, match=rf"no bucket ours: .*{code}.*DEEPLAMBDA_S3_REGION"):
        provision.s3_bucket(settings)
    with pytest.raises(NotReady, match="DEEPLAMBDA_S3_ENDPOINT"):
        probes.s3(settings)


def test_a_key_without_its_secret_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    settings = of_aws(tmp_path, "eu-central-1").model_copy(update={"s3_secret_key": SecretStr("")})
    with pytest.raises(NotReady, match=r"missing: aws_secret_access_key; check .*DEEPLAMBDA_S3_SECRET_KEY"):
        probes.s3(settings)
