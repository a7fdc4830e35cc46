"""What the MQTT broker reads: its configuration, who may log in, and what each may do.

Sources: mosquitto.conf(5); for the passwords, mosquitto's own `mosquitto_passwd`.
"""

import hashlib
import secrets
from base64 import b64encode
from collections.abc import Mapping

from deeplambda.config import Settings
from deeplambda.records import topics

PORT = 1883
FOLDER = "/mosquitto/data"

_SESSION_KEPT = "7d"  # as long as Kafka keeps an event
_QUEUE_LIMIT_BYTES = 256 * 1024 * 1024
MEMORY_LIMIT_BYTES = 448 * 1024 * 1024
"""What is queued and what is retained, of which there is a message for each topic that a device makes up: past that the
broker cuts off who publishes, and is not ended for it by its container's limit."""
_HASH_ROUNDS = 100_000
_SALT_BYTES = 12  # mosquitto 2.0 takes no other length


def configuration(settings: Settings) -> str:
    """`mosquitto.conf`. An event a little too large arrives, to become a dead letter; who sends more is cut off."""
    return f"""\
listener {PORT}
allow_anonymous false
password_file {FOLDER}/passwords
acl_file {FOLDER}/access
persistence true
persistence_location {FOLDER}/
autosave_interval 10
persistent_client_expiration {_SESSION_KEPT}
max_inflight_messages {topics.MQTT_IN_FLIGHT}
max_packet_size {2 * settings.event_limit_bytes}
max_queued_messages 0
max_queued_bytes {_QUEUE_LIMIT_BYTES}
memory_limit {MEMORY_LIMIT_BYTES}
log_dest stdout
log_type error
log_type warning
log_type notice
"""


def password_file(passwords: Mapping[str, str]) -> str:
    """By account, a salted hash: PBKDF2 with SHA-512, `user:$7$rounds$salt$hash`, both in base64."""
    return "".join(f"{user}:{_hashed(password)}\n" for user, password in passwords.items())


def access_list(settings: Settings) -> str:
    """`producer` writes events, `bridge` reads them, and neither does anything else."""
    events = [topics.mqtt_events(application) for application in settings.applications]
    written = "".join(f"topic write {topic}\n" for topic in events)
    read = "".join(f"topic read {topic}\n" for topic in events)
    return f"user producer\n{written}\nuser bridge\n{read}"


def _hashed(password: str) -> str:
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _HASH_ROUNDS)
    return f"$7${_HASH_ROUNDS}${b64encode(salt).decode()}${b64encode(digest).decode()}"
