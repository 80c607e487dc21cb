"""Downloads a known bundle's files over HTTPS: resumable, retried, and checked by SHA-256.

The hub's own statement of a file's checksum is the ``X-Linked-ETag`` header of its redirect for large
files (SHA-256), and the ``ETag`` (git's SHA-1 of the blob) for small ones. They are asked for only
where the catalogue states none.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.message import Message
from pathlib import Path
from typing import IO

from services.common.errors import Reason, VoxfleetError, not_found, precondition, unavailable
from services.engines.bundles.catalogue import HUB_URL
from services.engines.bundles.manifest import (
    BundleFile,
    ChecksumSource,
    Manifest,
    check_file,
    corrupt,
    hash_file,
    write_manifest,
)

Progress = Callable[[str, int, int | None], None]
"""Told (path, bytes so far, bytes in all or None) as a file arrives."""

_CHUNK_BYTES = 1 << 18
_REDIRECTS = 5
_SPARE_BYTES = 64 << 20
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
)


@dataclass(frozen=True, slots=True)
class Hub:
    """Where and how files are asked for.

    Args:
        url: what stands in for ``https://huggingface.co``: a mirror inside the company, or a test's server.
        timeout_s: the longest silence that is waited for.
        attempts: how often one file is tried without a single new byte before giving up.
        backoff_s: the pause after the first failure; it doubles.
        sleep: how to pause.
    """

    url: str = HUB_URL
    timeout_s: float = 30.0
    attempts: int = 5
    backoff_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def address(self, url: str) -> str:
        """The address to ask for a catalogue's ``url``."""
        return self.url.rstrip("/") + url.removeprefix(HUB_URL) if url.startswith(HUB_URL + "/") else url


def pull(
    manifest: Manifest, directory: Path, *, hub: Hub | None = None, progress: Progress | None = None
) -> Manifest:
    """Bring a bundle's files into ``directory`` and write its complete manifest there.

    Files that are already there and right are left alone; a file that was cut short goes on where it
    stopped (``*.part``).

    Returns:
        the manifest, completed with what the hub states where the catalogue had no checksum.

    Raises:
        VoxfleetError: HUB_UNREACHABLE where no server answers; MODEL_NOT_FOUND where the file is gone;
            MODEL_CORRUPT where its bytes are not the ones expected; STORAGE_UNAVAILABLE where the
            disk is too small; INVALID_ARGUMENT where the bundle is not one that is pulled.
    """
    hub = hub or Hub()
    for file in manifest.files:
        if not file.url:
            raise precondition(
                Reason.INVALID_ARGUMENT,
                f"bundle {manifest.name} is not pulled from a hub ({manifest.source})",
                bundle=manifest.name,
            )
    directory.mkdir(parents=True, exist_ok=True)
    _check_room(directory, manifest)
    files = []
    for file in manifest.files:
        expected = _Expected(file) if file.sha256 is not None else _stated_by_hub(hub, manifest.name, file)
        files.append(_bring(hub, manifest.name, expected, directory, progress))
    complete_manifest = manifest.with_files(files)
    write_manifest(directory, complete_manifest)
    return complete_manifest


@dataclass(frozen=True, slots=True)
class _Expected:
    """A file with all that is stated of it beforehand."""

    file: BundleFile
    git_sha1: str | None = None


def _bring(
    hub: Hub, bundle: str, expected: _Expected, directory: Path, progress: Progress | None
) -> BundleFile:
    file = expected.file
    target = directory / file.path
    if target.is_file():
        try:
            return _checked(bundle, expected, target)
        except VoxfleetError:
            target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    for last in (False, True):
        _download(hub, bundle, file, partial, progress)
        try:
            found = _checked(bundle, expected, partial)
        except VoxfleetError:
            # A stale partial file can spoil one attempt; the second starts from nothing.
            partial.unlink()
            if last:
                raise
        else:
            partial.replace(target)
            return found
    raise AssertionError("unreachable")


def _checked(bundle: str, expected: _Expected, path: Path) -> BundleFile:
    """The file's entry with a SHA-256, after a check against whatever was stated of it."""
    file = expected.file
    if file.sha256 is not None:
        check_file(bundle, file, path)
        return replace(file, size_bytes=path.stat().st_size)
    if expected.git_sha1 is not None:
        actual = _git_blob_sha1(path)
        if actual != expected.git_sha1:
            raise corrupt(
                bundle, file.path, "its git checksum differs", expected=expected.git_sha1, actual=actual
            )
    source: ChecksumSource = "hub" if expected.git_sha1 is not None else "local"
    return replace(file, sha256=hash_file(path), size_bytes=path.stat().st_size, checksum_source=source)


# ---- one file


def _download(hub: Hub, bundle: str, file: BundleFile, partial: Path, progress: Progress | None) -> None:
    """Fill ``partial`` to its end, going on after every interruption."""
    failures = 0
    while True:
        before = _size_of(partial)
        if file.size_bytes is not None and before == file.size_bytes:
            return
        try:
            _download_once(hub, bundle, file, partial, progress)
            return
        except _NETWORK_ERRORS as error:
            # Only attempts that brought nothing count: a slow line that drops often still gets there.
            failures = 1 if _size_of(partial) > before else failures + 1
            if failures >= hub.attempts:
                raise _unreachable(hub, bundle, file, error) from error
            hub.sleep(hub.backoff_s * 2 ** (failures - 1))


def _download_once(hub: Hub, bundle: str, file: BundleFile, partial: Path, progress: Progress | None) -> None:
    have = _size_of(partial)
    request = _request(hub.address(file.url), have=have)
    try:
        response = urllib.request.urlopen(request, timeout=hub.timeout_s)  # noqa: S310 - see _request
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            # Longer than the file on the hub: what is here belongs to something else.
            partial.unlink(missing_ok=True)
            raise ConnectionError("the partial file does not fit the one on the hub") from error
        if error.code in _RETRIED_STATUS:
            raise ConnectionError(f"the hub answered {error.code}") from error
        raise _refused(hub, bundle, file, error.code) from error
    with response:
        start, total = _span(response, have)
        total = total if total is not None else file.size_bytes
        with partial.open("r+b" if start else "wb") as sink:
            sink.seek(start)
            sink.truncate()
            done = start
            while chunk := response.read(_CHUNK_BYTES):
                sink.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(file.path, done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection was cut after {done} of {total} bytes")


def _span(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """(where the response's bytes start, the whole file's length if stated)."""
    if response.status == 206:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match and int(match[1]) == have:
            return have, int(match[2]) if match[2] != "*" else None
        raise ConnectionError("the hub answered with another range than the one asked for")
    length = response.headers.get("Content-Length")
    return 0, int(length) if length is not None and length.isdigit() else None


# ---- what the hub states of a file


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are read here, not followed: the checksum stands on the redirect itself."""

    def redirect_request(  # noqa: PLR0917 - the standard library's signature
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def _stated_by_hub(hub: Hub, bundle: str, file: BundleFile) -> _Expected:
    """The entry with the checksum that the hub states of it: SHA-256, or git's SHA-1 of the blob."""
    headers = _head(hub, bundle, file)
    etag = (headers.get("x-linked-etag") or headers.get("etag") or "").removeprefix("W/").strip('"').lower()
    size = headers.get("x-linked-size") or headers.get("content-length")
    size_bytes = int(size) if size is not None and size.isdigit() else None
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return _Expected(replace(file, sha256=etag, size_bytes=size_bytes, checksum_source="hub"))
    return _Expected(file, git_sha1=etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None)


def _head(hub: Hub, bundle: str, file: BundleFile) -> Mapping[str, str]:
    opener = urllib.request.build_opener(_NoRedirect)
    address, failures = hub.address(file.url), 0
    found: dict[str, str] = {}
    for _ in range(_REDIRECTS + hub.attempts):
        request = _request(address, method="HEAD")
        try:
            with opener.open(request, timeout=hub.timeout_s) as response:
                return found | _lowered(response.headers)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (301, 302, 303, 307, 308):
                headers = _lowered(error.headers)
                if "x-linked-etag" in headers:
                    return headers
                address = urllib.parse.urljoin(address, headers.get("location", ""))
                continue
            if error.code not in _RETRIED_STATUS:
                raise _refused(hub, bundle, file, error.code) from error
            failure: Exception = error
        except _NETWORK_ERRORS as error:
            failure = error
        failures += 1
        if failures >= hub.attempts:
            raise _unreachable(hub, bundle, file, failure) from failure
        hub.sleep(hub.backoff_s * 2 ** (failures - 1))
    raise _refused(hub, bundle, file, 310)


def _lowered(headers: Message) -> dict[str, str]:
    return {key.lower(): value for key, value in headers.items()}


def _request(address: str, *, method: str = "GET", have: int = 0) -> urllib.request.Request:
    if urllib.parse.urlsplit(address).scheme not in ("https", "http"):
        raise precondition(Reason.INVALID_ARGUMENT, f"{address} is not a web address", url=address)
    # identity: a compressed body would neither resume nor match its checksum.
    headers = {"User-Agent": "voxfleet", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    return urllib.request.Request(address, method=method, headers=headers)  # noqa: S310 - checked above


def _git_blob_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


# ---- errors


def _unreachable(hub: Hub, bundle: str, file: BundleFile, cause: Exception) -> VoxfleetError:
    why = getattr(cause, "reason", None) or cause
    return unavailable(
        Reason.HUB_UNREACHABLE,
        f"{hub.url} cannot be reached for {file.path} of bundle {bundle} ({why}). Without a network, fetch "
        f"the files elsewhere and run `voxfleet models import DIR` on a machine that has them",
        retry_after_s=60.0,
        bundle=bundle,
        hub=hub.url,
        path=file.path,
    )


def _refused(hub: Hub, bundle: str, file: BundleFile, status: int) -> VoxfleetError:
    error = not_found(Reason.MODEL_NOT_FOUND, f"{file.path} of bundle {bundle} at {hub.address(file.url)}")
    error.metadata["http_status"] = str(status)
    return error


def _check_room(directory: Path, manifest: Manifest) -> None:
    missing = sum(
        max(
            0,
            (file.size_bytes or 0)
            - _size_of((directory / file.path).with_name(Path(file.path).name + ".part")),
        )
        for file in manifest.files
        if not (directory / file.path).is_file()
    )
    free = shutil.disk_usage(directory).free
    if missing and free < missing + _SPARE_BYTES:
        raise precondition(
            Reason.STORAGE_UNAVAILABLE,
            f"bundle {manifest.name} needs {missing >> 20} MiB more on the disk of {directory}, which has "
            f"{free >> 20} MiB left",
            needed_bytes=missing,
            free_bytes=free,
        )


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
