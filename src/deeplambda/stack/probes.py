"""Whether a part answers, asked in its real protocol. Each probe returns a short note or raises NotReady."""

import json
import logging
from contextlib import closing
from http import HTTPStatus

import pymysql
import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.Thrift import TMessageType, TType
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransport, TTransportException

from deeplambda.adapters.kafka import client_options, kafka_remedy
from deeplambda.adapters.s3 import has_bucket, s3_client, s3_remedy
from deeplambda.config import Settings, host_of, port_of
from deeplambda.errors import NotReady

TIMEOUT_S = 5
logging.getLogger("thrift").setLevel(logging.CRITICAL)  # it prints every refused connection
_HTTP = urllib3.PoolManager(timeout=TIMEOUT_S, retries=False)


def kafka(settings: Settings) -> str:
    """Ask for the cluster's metadata."""
    try:
        with KafkaAdminClient(
            **client_options(settings),
            bootstrap_timeout_ms=TIMEOUT_S * 1000,
            request_timeout_ms=TIMEOUT_S * 1000,
        ) as admin:
            return f"{len(admin.list_topics())} topics"
    except (KafkaError, OSError) as exc:
        raise NotReady(f"no metadata from Kafka: {type(exc).__name__}: {exc}", kafka_remedy(settings)) from exc


def s3(settings: Settings) -> str:
    """Ask for our bucket alone: listing all takes a right of its own."""
    try:
        with closing(s3_client(settings, timeout_s=TIMEOUT_S, attempts=1)) as client:
            found = has_bucket(client, settings.s3_bucket)
    except (BotoCoreError, ClientError) as exc:
        raise NotReady(f"no answer about the bucket {settings.s3_bucket}: {exc}", s3_remedy(settings)) from exc
    return f"bucket {settings.s3_bucket}" if found else f"no bucket {settings.s3_bucket} yet"


def mysql(settings: Settings) -> str:
    """Log in as root and select."""
    try:
        with (
            pymysql.connect(
                host=host_of(settings.mysql_address),
                port=port_of(settings.mysql_address),
                user="root",
                password=settings.mysql_root_password.get_secret_value(),
                connect_timeout=TIMEOUT_S,
                read_timeout=TIMEOUT_S,
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT VERSION()")
            (version,) = cursor.fetchone() or ("",)
    except (pymysql.MySQLError, OSError) as exc:
        raise NotReady(f"MySQL does not answer: {exc}") from exc
    return str(version)


def metastore(settings: Settings) -> str:
    """Call `get_all_databases`, which reads the metastore's own tables."""
    transport = TSocket(host_of(settings.metastore_uri), port_of(settings.metastore_uri))
    transport.setTimeout(TIMEOUT_S * 1000)
    buffered = TBufferedTransport(transport)
    protocol = TBinaryProtocol(buffered)
    try:
        buffered.open()
        protocol.writeMessageBegin("get_all_databases", TMessageType.CALL, 1)
        protocol.writeStructBegin("arguments")
        protocol.writeFieldStop()
        protocol.writeStructEnd()
        protocol.writeMessageEnd()
        buffered.flush()
        _, kind, _ = protocol.readMessageBegin()
        protocol.readStructBegin()
        _, field_type, field_id = protocol.readFieldBegin()
        # Field 0 is the result of a Thrift call; any other is an exception.
        if kind != TMessageType.REPLY or field_type != TType.LIST or field_id != 0:
            raise NotReady("the metastore cannot read its tables")
        _, databases = protocol.readListBegin()
    except (TTransportException, EOFError, OSError) as exc:
        raise NotReady(f"no answer from the metastore: {exc}") from exc
    finally:
        buffered.close()
    return f"{databases} databases"


def gateway(settings: Settings) -> str:
    """`SELECT 1` over HiveServer2's protocol."""
    from pyhive import hive

    try:
        connection = hive.connect(
            host=host_of(settings.hive_address),
            port=port_of(settings.hive_address),
            username="analyst",
            password=settings.analyst_password.get_secret_value(),
            auth="CUSTOM",
        )
        try:
            cursor = connection.cursor()
            cursor.execute("SELECT 1")
            cursor.fetchall()
        finally:
            connection.close()
    except (hive.Error, TTransportException, EOFError, OSError) as exc:
        raise NotReady(f"the Hive gateway does not answer: {exc}") from exc
    return "SELECT 1"


def model(settings: Settings) -> str:
    """The liveness route of the Open Inference Protocol."""
    return _http_ok(f"{settings.model_url}/v2/health/live")


def model_states(settings: Settings) -> dict[str, str]:
    """By application, `running`, or `failing: ` and why its newest champion does not serve. Raises: NotReady."""
    models = json.loads(_got(f"{settings.model_url}/v1/models"))["models"]
    return {each["name"]: f"failing: {each['error']}" if each["error"] else "running" for each in models}


def query(settings: Settings) -> str:
    """The query service's health route."""
    return _http_ok(f"{settings.query_url}/v1/health")


def _http_ok(url: str) -> str:
    _got(url)
    return "live"


def _got(url: str) -> bytes:
    try:
        response = _HTTP.request("GET", url)
    except urllib3.exceptions.HTTPError as exc:
        raise NotReady(f"no answer from {url}: {type(exc).__name__}") from exc
    if response.status != HTTPStatus.OK:
        raise NotReady(f"{url} answers {response.status}")
    return response.data
