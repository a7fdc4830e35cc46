"""The query service of a platform that serves no application yet."""

from deeplambda.config import Settings
from serving_layer.query_service.app import create_app


def test_without_applications_none_is_found_and_the_page_is_there(settings: Settings) -> None:
    asking = create_app(settings.model_copy(update={"applications": ()})).test_client()
    for path in ("/v1/models", "/v1/statistics", "/v1/statistics?application=digits"):
        reply = asking.get(path, base_url=settings.query_url)
        assert (reply.status_code, reply.json["remedy"]) == (404, "there are none")
    assert asking.get("/", base_url=settings.query_url).status_code == 200
