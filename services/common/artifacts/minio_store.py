"""The artefact store on any S3, through the ``minio`` client."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import quote

import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from services.common.artifacts.failures import corrupt, missing, out_of_range
from services.common.artifacts.model import DEFAULT_MEDIA_TYPE, Blob, Listed, check_prefix, content_sha256
from services.common.artifacts.ports import CHUNK_BYTES
from services.common.artifacts.settings import S3Settings
from services.common.errors import Reason, VoxfleetError, unavailable

PART_BYTES = 16 * 2**20
HASH_CHUNK_BYTES = 2**20
READ_TIMEOUT_S = 60.0
_SHA256_META = "x-amz-meta-sha256"
_NOT_FOUND = frozenset({"NoSuchKey", "NoSuchObject", "NotFound"})
_REFUSED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})


class MinioArtifactStore:
    """An :class:`~services.common.artifacts.ports.ArtifactStore` on an S3 bucket.

    Args:
        settings: where it is.
        retries: how often one request is repeated after a lost connection or a 5xx answer.
        connections: how many connections are kept open.
    """

    def __init__(
        self, settings: S3Settings, *, retries: int = 3, connect_timeout_s: float = 5.0, connections: int = 16
    ) -> None:
        self._bucket = settings.bucket
        self._endpoint = settings.endpoint
        keys = (settings.access_key, settings.secret_key.get_secret_value())
        pool = urllib3.PoolManager(
            maxsize=connections,
            timeout=urllib3.Timeout(connect=connect_timeout_s, read=READ_TIMEOUT_S),
            retries=urllib3.Retry(
                total=retries,
                backoff_factor=0.2,
                status_forcelist=(500, 502, 503, 504),
                raise_on_status=False,
            ),
        )
        # A region of its own saves asking for it, which for the public address may not be possible.
        self._client = Minio(
            settings.endpoint, *keys, secure=settings.secure, region=settings.region, http_client=pool
        )
        host, secure = settings.public
        self._public = Minio(host, *keys, secure=secure, region=settings.region)

    def ensure_bucket(self) -> None:
        """See the port."""
        with self._errors(""):
            if not self._client.bucket_exists(self._bucket):
                with ignore_codes("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    self._client.make_bucket(self._bucket)

    def put_file(
        self,
        key: str,
        path: Path,
        *,
        media_type: str = DEFAULT_MEDIA_TYPE,
        sha256: str = "",
        verify_content: bool = False,
    ) -> Blob:
        """See the port."""
        with path.open("rb") as file:
            return self._put(key, file, media_type, sha256, verify_content=verify_content)

    def put_bytes(
        self, key: str, data: bytes, *, media_type: str = DEFAULT_MEDIA_TYPE, sha256: str = ""
    ) -> Blob:
        """See the port."""
        return self._put(key, io.BytesIO(data), media_type, sha256, verify_content=False)

    def get_file(self, key: str, path: Path, *, sha256: str = "") -> Blob:
        """See the port."""
        blob = self.stat(key)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
        try:
            with partial.open("wb") as file:
                self._fetch(blob, sha256, file)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return blob

    def get_bytes(self, key: str, *, sha256: str = "") -> bytes:
        """See the port."""
        buffer = io.BytesIO()
        self._fetch(self.stat(key), sha256, buffer)
        return buffer.getvalue()

    def open_range(self, key: str, offset_bytes: int = 0, length_bytes: int | None = None) -> Iterator[bytes]:
        """See the port."""
        if offset_bytes < 0:
            raise out_of_range(key, offset_bytes, self.stat(key).size_bytes)
        if offset_bytes > 0 or length_bytes == 0:
            # S3 refuses the empty range at the end as well; the size tells the two apart.
            size_bytes = self.stat(key).size_bytes
            if offset_bytes > size_bytes:
                raise out_of_range(key, offset_bytes, size_bytes)
            if offset_bytes == size_bytes or length_bytes == 0:
                return iter(())
        with self._errors(key):
            response = self._client.get_object(
                self._bucket, key, offset=offset_bytes, length=length_bytes or 0
            )
        return self._chunks(key, response)

    def stat(self, key: str) -> Blob:
        """See the port."""
        with self._errors(key):
            found = self._client.stat_object(self._bucket, key)
        recorded = {name.lower(): value for name, value in (found.metadata or {}).items()}.get(
            _SHA256_META, ""
        )
        return Blob(
            key=key,
            sha256=content_sha256(key) or recorded,
            size_bytes=found.size or 0,
            media_type=found.content_type or DEFAULT_MEDIA_TYPE,
        )

    def exists(self, key: str) -> bool:
        """See the port."""
        return self._find(key) is not None

    def copy(self, source: str, target: str) -> Blob:
        """See the port."""
        with self._errors(source):
            self._client.copy_object(self._bucket, target, CopySource(self._bucket, source))
        return self.stat(target)

    def delete(self, key: str) -> None:
        """See the port."""
        with self._errors(key), ignore_codes(*_NOT_FOUND):
            self._client.remove_object(self._bucket, key)

    def delete_prefix(self, prefix: str) -> int:
        """See the port."""
        check_prefix(prefix)
        with self._errors(prefix):
            keys = [listed.key for listed in self.list_prefix(prefix)]
            failures = list(self._client.remove_objects(self._bucket, (DeleteObject(key) for key in keys)))
        if failures:
            raise unavailable(
                Reason.STORAGE_UNAVAILABLE,
                f"{len(failures)} of {len(keys)} artefacts under {prefix} were not deleted: {failures[0]}",
            )
        return len(keys)

    def list_prefix(self, prefix: str) -> Iterator[Listed]:
        """See the port."""
        with self._errors(prefix):
            for found in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                if found.object_name is not None and not found.is_dir:
                    modified_at = found.last_modified or datetime.now(UTC)
                    yield Listed(found.object_name, found.size or 0, modified_at)

    def presign_get(self, key: str, expires_s: int, *, file_name: str = "") -> str:
        """See the port."""
        headers: dict[str, str | list[str] | tuple[str]] = {}
        if file_name:
            headers["response-content-disposition"] = f"attachment; filename*=UTF-8''{quote(file_name)}"
        return self._public.presigned_get_object(
            self._bucket, key, expires=timedelta(seconds=expires_s), response_headers=headers or None
        )

    def presign_put(self, key: str, expires_s: int) -> str:
        """See the port."""
        return self._public.presigned_put_object(self._bucket, key, expires=timedelta(seconds=expires_s))

    def _put(self, key: str, file: BinaryIO, media_type: str, sha256: str, *, verify_content: bool) -> Blob:
        actual, size_bytes = digest_of(file)
        for expected in (sha256, content_sha256(key)):
            if expected and expected != actual:
                raise corrupt(key, expected, actual)
        blob = Blob(key, actual, size_bytes, media_type)
        kept = self._find(key)
        if kept is not None and (kept.size_bytes, kept.sha256) == (size_bytes, actual):
            return kept
        file.seek(0)
        reader = _HashingReader(file)
        with self._errors(key):
            self._client.put_object(
                self._bucket,
                key,
                cast("BinaryIO", reader),  # of which the client only reads
                size_bytes,
                content_type=media_type,
                metadata={_SHA256_META: actual},
                part_size=PART_BYTES,
                num_parallel_uploads=1,  # parts are read, hashed and sent in order
            )
        sent = reader.hexdigest()
        if sent == actual and self.stat(key).size_bytes == size_bytes:
            if not verify_content:
                return blob
            sent = self._stored_digest(key)
            if sent == actual:
                return blob
        self.delete(key)
        raise corrupt(key, actual, sent)

    def _stored_digest(self, key: str) -> str:
        digest = hashlib.sha256()
        for chunk in self.open_range(key):
            digest.update(chunk)
        return digest.hexdigest()

    def _fetch(self, blob: Blob, sha256: str, target: BinaryIO) -> None:
        digest = hashlib.sha256()
        for chunk in self.open_range(blob.key):
            digest.update(chunk)
            target.write(chunk)
        expected, actual = sha256 or blob.sha256, digest.hexdigest()
        if expected and expected != actual:
            raise corrupt(blob.key, expected, actual)

    def _chunks(self, key: str, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            with self._errors(key):
                yield from response.stream(CHUNK_BYTES)
        finally:
            # An unread rest would be read by the connection's next user: close, do not give back.
            response.close()
            response.release_conn()

    def _find(self, key: str) -> Blob | None:
        try:
            return self.stat(key)
        except VoxfleetError as error:
            if error.reason is Reason.ARTIFACT_NOT_FOUND:
                return None
            raise

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn the client's exceptions into ours."""
        try:
            yield
        except S3Error as error:
            if error.code in _NOT_FOUND:
                raise missing(key) from error
            hint = "; check the access key and the secret key" if error.code in _REFUSED else ""
            raise self._unavailable(f"answers {error.code}: {error.message}{hint}") from error
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            raise self._unavailable(f"cannot be used: {error}") from error

    def _unavailable(self, what: str) -> VoxfleetError:
        return unavailable(
            Reason.STORAGE_UNAVAILABLE,
            f"the object store at {self._endpoint} {what}",
            endpoint=self._endpoint,
        )


class _HashingReader:
    """A file that hashes what is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next ``size`` bytes, fewer at the end."""
        data = self._file.read(size)
        self._digest.update(data)
        return data

    def hexdigest(self) -> str:
        """The hash of what was read so far."""
        return self._digest.hexdigest()


def digest_of(file: BinaryIO) -> tuple[str, int]:
    """The SHA-256 and the size in bytes of a file from its present place to its end."""
    digest = hashlib.sha256()
    size_bytes = 0
    while chunk := file.read(HASH_CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
    return digest.hexdigest(), size_bytes


@contextmanager
def ignore_codes(*codes: str) -> Iterator[None]:
    """Let S3 errors of these codes pass."""
    try:
        yield
    except S3Error as error:
        if error.code not in codes:
            raise
