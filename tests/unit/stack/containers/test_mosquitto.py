import hashlib
from base64 import b64decode

from deeplambda.config import Settings
from deeplambda.stack.containers import mosquitto


def test_passwords_are_salted_hashes_that_mosquitto_can_check() -> None:
    (line,) = mosquitto.password_file({"producer": "top secret"}).splitlines()
    user, _, hashed = line.partition(":")
    empty, kind, rounds, salt, digest = hashed.split("$")
    assert (user, empty, kind) == ("producer", "", "7")
    assert (len(b64decode(salt)), len(b64decode(digest))) == (12, 64), "mosquitto 2.0 removes entries of other lengths"
    assert hashlib.pbkdf2_hmac("sha512", b"top secret", b64decode(salt), int(rounds)) == b64decode(digest)


def test_equal_passwords_have_different_hashes() -> None:
    one, two = (mosquitto.password_file({"producer": "same"}) for _ in range(2))
    assert one != two


def test_producers_write_and_the_bridge_reads_the_topics_of_every_application(settings: Settings) -> None:
    both = settings.model_copy(update={"applications": ("digits", "fraud")})
    assert mosquitto.access_list(both) == (
        "user producer\ntopic write digits/events/#\ntopic write fraud/events/#\n"
        "\nuser bridge\ntopic read digits/events/#\ntopic read fraud/events/#\n"
    )


def test_an_event_above_the_limit_still_arrives_to_become_a_dead_letter(settings: Settings) -> None:
    small = settings.model_copy(update={"event_limit_bytes": 1000})
    assert "max_packet_size 2000\n" in mosquitto.configuration(small)


def test_nobody_comes_in_without_a_password(settings: Settings) -> None:
    assert "allow_anonymous false\n" in mosquitto.configuration(settings)


def test_a_session_that_nobody_takes_up_ends_when_kafka_would_have_forgotten_its_events(settings: Settings) -> None:
    assert "persistent_client_expiration 7d\n" in mosquitto.configuration(settings)
