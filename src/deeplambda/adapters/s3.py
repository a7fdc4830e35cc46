"""S3, by boto3: raw objects and model artefacts, each with its SHA-256 and checked on the way back."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deeplambda.adapters.machine import free_memory
from deeplambda.config import Settings, is_loopback, remedy_for
from deeplambda.errors import BadInput, CorruptObject, NotReady

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ObjectTypeDef, PartTypeDef

_HASH = "sha256"
_DELETED_AT_ONCE = 1000  # S3's limit
PART_BYTES = 64 * 2**20
"""Of a large file, what is sent and held at once. S3Proxy takes at most 128 MiB in one request."""
_MOST_PARTS = 10_000  # S3's limit
_PIECE_BYTES = 2**20
_LISTED_AT_ONCE, _FOLDERS = 8, 1000


Sent = Callable[[int], None]
"""What is called with the bytes of each part that S3 has."""


def _ignored(size_bytes: int) -> None:
    pass


class UnfinishedUpload(NamedTuple):
    """An upload in parts that S3 still waits for. bytes: what it has. modified: when it got the last part."""

    key: str
    id: str
    bytes: int
    modified: datetime


class StoredObject(NamedTuple):
    """An object as a listing shows it. modified: when it was stored. tag: S3's, which is another for other content."""

    key: str
    bytes: int
    modified: datetime
    tag: str

    @classmethod
    def of(cls, listed: "ObjectTypeDef") -> "StoredObject":
        """From one of S3's own answers."""
        modified = listed["LastModified"].astimezone(UTC)  # boto3's own zone is an object of 416 bytes for each
        return cls(listed["Key"], listed["Size"], modified, listed["ETag"].strip('"'))


def sha256_of(content: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(content).hexdigest()


def s3_client(settings: Settings, *, timeout_s: float = 60, attempts: int = 8) -> "S3Client":
    """boto3's client for the configured endpoint, or for AWS where none is. timeout_s: of one read."""
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key or None,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value() or None,
        config=Config(
            retries={"mode": "standard", "max_attempts": attempts},
            connect_timeout=5,
            read_timeout=timeout_s,
            s3={"addressing_style": "path"} if settings.s3_endpoint else None,
            proxies={} if is_loopback(settings.s3_endpoint) else None,  # the environment's are for what is elsewhere
            request_checksum_calculation="when_required",  # S3Proxy refuses the trailing checksums of newer SDKs
            response_checksum_validation="when_required",
        ),
    )


def has_bucket(client: "S3Client", bucket: str) -> bool:
    """Whether the bucket is there. Raises: ClientError where it is somebody else's, or in another region."""
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as exc:
        if exc.response["Error"]["Code"] in {"404", "NoSuchBucket"}:
            return False
        raise
    return True


def s3_remedy(settings: Settings) -> str:
    """What to do when S3 refuses, or does not answer."""
    names = ("s3_endpoint", "s3_region", "s3_bucket", "s3_access_key", "s3_secret_key")
    return remedy_for("s3", settings.s3_endpoint, *names)


class ObjectStore:
    """The platform's bucket; keys are relative to it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.bucket = settings.s3_bucket

    @cached_property
    def client(self) -> "S3Client":
        """Made at first use, kept for the life of the process."""
        return s3_client(self._settings)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as exc:
            if exc.response["Error"]["Code"] in {"404", "NoSuchKey", "NoSuchBucket"}:
                raise BadInput(
                    f"no object s3://{self.bucket}/{key}", "see what is there: 'deeplambda data list'"
                ) from exc
            raise NotReady(f"S3 refused s3://{self.bucket}/{key}: {exc}", s3_remedy(self._settings)) from exc
        except BotoCoreError as exc:
            raise NotReady(
                f"S3 at {self._settings.s3_endpoint} did not answer: {exc}", s3_remedy(self._settings)
            ) from exc

    def put(self, key: str, content: bytes) -> str:
        """Store `content` with its SHA-256, which is returned. Raises: NotReady."""
        digest = sha256_of(content)
        self._send(key, BytesIO(content), len(content), digest)
        return digest

    def put_file(self, key: str, path: Path, sent: Sent = _ignored, part_bytes: int = PART_BYTES) -> bool:
        """Store a file with its SHA-256, in parts; False when it is there already, byte for byte.

        Parts that S3 has from an upload which was broken off are not sent again. part_bytes: S3 takes at least 5 MiB.
        Raises: NotReady.
        """
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, _HASH).hexdigest()
            size = file.tell()
            if self.digest(key) == digest:
                sent(size)
                return False
            self._send(key, file, size, digest, sent, part_bytes)
        return True

    def _send(
        self, key: str, file: BinaryIO, size: int, digest: str, sent: Sent = _ignored, part_bytes: int = PART_BYTES
    ) -> None:
        file.seek(0)
        part_bytes = max(part_bytes, math.ceil(size / _MOST_PARTS))
        with self._errors(key):
            if size <= part_bytes:
                self.client.put_object(Bucket=self.bucket, Key=key, Body=file.read(), Metadata={_HASH: digest})
                sent(size)
                return
            self._send_parts(key, file, digest, sent, part_bytes)
            if self.digest(key) != digest:  # the upload that was broken off was of other content, and had its hash
                self._send_parts(key, file, digest, sent, part_bytes)

    def _send_parts(self, key: str, file: BinaryIO, digest: str, sent: Sent, part_bytes: int) -> None:
        upload = next((found.id for found in self.unfinished(key) if found.key == key), None)
        upload = (
            upload
            or self.client.create_multipart_upload(Bucket=self.bucket, Key=key, Metadata={_HASH: digest})["UploadId"]
        )
        there = {part["PartNumber"]: part["ETag"].strip('"') for part in self._parts(key, upload)}
        file.seek(0)
        parts: list[CompletedPartTypeDef] = []
        while content := file.read(part_bytes):
            number = len(parts) + 1
            tag = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if there.get(number) != tag:
                tag = self.client.upload_part(
                    Bucket=self.bucket, Key=key, UploadId=upload, PartNumber=number, Body=content
                )["ETag"]
            parts.append({"PartNumber": number, "ETag": tag})
            sent(len(content))
        self.client.complete_multipart_upload(
            Bucket=self.bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def unfinished(self, prefix: str) -> list[UnfinishedUpload]:
        """Uploads in parts that have not ended, of keys under `prefix`. Raises: NotReady."""
        with self._errors(prefix):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
            found = [upload for page in pages for upload in page.get("Uploads", [])]
            return [
                UnfinishedUpload(
                    upload["Key"],
                    upload["UploadId"],
                    sum(part["Size"] for part in parts),
                    max((part["LastModified"] for part in parts), default=upload["Initiated"]),
                )
                for upload in found
                for parts in [self._parts(upload["Key"], upload["UploadId"])]
            ]

    def abort(self, upload: UnfinishedUpload) -> None:
        """Drop an upload and its parts. Raises: NotReady."""
        with self._errors(upload.key):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.id)

    def _parts(self, key: str, upload: str) -> "list[PartTypeDef]":
        pages = self.client.get_paginator("list_parts").paginate(Bucket=self.bucket, Key=key, UploadId=upload)
        return [part for page in pages for part in page.get("Parts", [])]

    def digest(self, key: str) -> str | None:
        """The SHA-256 that was recorded when `key` was stored; None when there is no such object. Raises: NotReady."""
        try:
            with self._errors(key):
                return self.client.head_object(Bucket=self.bucket, Key=key)["Metadata"].get(_HASH)
        except BadInput:
            return None

    def fingerprint(self, key: str) -> str:
        """The SHA-256 that was recorded when `key` was stored, else S3's own tag after `etag:`. Raises: BadInput."""
        with self._errors(key):
            head = self.client.head_object(Bucket=self.bucket, Key=key)
        return head["Metadata"].get(_HASH) or f"etag:{head['ETag'].strip(chr(34))}"

    def get(self, key: str, sha256: str | None = None) -> bytes:
        """The object's bytes, checked against `sha256` or else against the hash recorded with it.

        Raises: CorruptObject, BadInput when there is none, NotReady; MemoryError before the system ends the process.
        """
        with self._errors(key):
            response = self.client.get_object(Bucket=self.bucket, Key=key)
            if response["ContentLength"] > (free := free_memory()):
                response["Body"].close()
                raise MemoryError(
                    f"s3://{self.bucket}/{key} has {response['ContentLength']:,} bytes, {free:,} are free"
                )
            content = response["Body"].read()
        expected = sha256 or response["Metadata"].get(_HASH)
        found = sha256_of(content)
        if expected is not None and found != expected:
            raise CorruptObject(
                f"s3://{self.bucket}/{key} has SHA-256 {found[:12]}…, {expected[:12]}… was recorded of it",
                "restore the object, or upload it again",
            )
        return content

    def part(self, key: str, *, first: int = 0, last: int = 0) -> bytes:
        """At most so many bytes of the object's beginning, or of its end. Raises: BadInput for none, NotReady."""
        wanted = f"bytes=-{last}" if last else f"bytes=0-{first - 1}"
        with self._errors(key):
            try:
                content: bytes = self.client.get_object(Bucket=self.bucket, Key=key, Range=wanted)["Body"].read()
            except ClientError as exc:
                if exc.response["Error"]["Code"] not in {"InvalidRange", "416"}:
                    raise
                return b""  # the object is empty
        return content

    def copy(self, key: str, to: str) -> None:
        """Have S3 store an object, its recorded hash included, under another key too. Raises: BadInput, NotReady."""
        with self._errors(key):
            self.client.copy_object(Bucket=self.bucket, Key=to, CopySource={"Bucket": self.bucket, "Key": key})

    def is_sound(self, key: str) -> bool:
        """Whether the object can be read to its end and has the SHA-256 that was recorded with it, if one was.

        It is read in pieces, of whatever size it is. Raises: NotReady.
        """
        digest = hashlib.new(_HASH)
        try:
            with self._errors(key):
                response = self.client.get_object(Bucket=self.bucket, Key=key)
                for piece in response["Body"].iter_chunks(_PIECE_BYTES):
                    digest.update(piece)
        except BadInput:
            return False
        recorded = response["Metadata"].get(_HASH)
        return recorded in (None, digest.hexdigest())

    def list(self, prefix: str) -> list[StoredObject]:
        """Every object under `prefix`, sorted. Raises: NotReady."""
        return sorted(self.each(prefix), key=lambda item: item.key)

    def each(self, prefix: str) -> Iterator[StoredObject]:
        """Every object under `prefix`, as S3 answers, in no order. Raises: NotReady.

        Folders are looked through side by side: S3 answers a thousand names a request, and a store that keeps files
        looks through all that is under a prefix for each. One of very many folders is asked as a whole.
        """
        folders: MutableSequence[str] = [prefix]
        with ThreadPoolExecutor(_LISTED_AT_ONCE, thread_name_prefix="list") as executor:
            while folders:
                inside: MutableSequence[str] = []
                for items, below in executor.map(self._folder, folders):
                    yield from items
                    inside += below
                folders = inside
                if len(folders) > _FOLDERS:
                    for items in executor.map(self._tree, folders):
                        yield from items
                    return

    def _folder(self, prefix: str) -> tuple[Sequence[StoredObject], Sequence[str]]:
        """The objects right under `prefix`, and the folders beside them; all objects where these are too many."""
        items: MutableSequence[StoredObject] = []
        folders: MutableSequence[str] = []
        with self._errors(prefix):
            for page in self._pages(prefix, Delimiter="/"):
                items += map(StoredObject.of, page.get("Contents", []))
                folders += [folder["Prefix"] for folder in page.get("CommonPrefixes", [])]
                if len(folders) > _FOLDERS:
                    return self._tree(prefix), []
        return items, folders

    def _tree(self, prefix: str) -> Sequence[StoredObject]:
        with self._errors(prefix):
            return [StoredObject.of(item) for page in self._pages(prefix) for item in page.get("Contents", [])]

    def _pages(self, prefix: str, **options: Any) -> Any:
        return self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, **options)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are none. Raises: NotReady."""
        waiting = iter(keys)
        while some := [*islice(waiting, _DELETED_AT_ONCE)]:
            with self._errors(some[0]):
                done = self.client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in some], "Quiet": True}
                )
            if failed := done.get("Errors"):
                raise NotReady(f"S3 did not delete {failed[0].get('Key')}: {failed[0].get('Message')}")
