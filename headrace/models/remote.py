"""Asking a running worker, from the command line."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from headrace.engine.host_errors import rebuild
from headrace.models import errors as errors  # (its errors come back by their codes)
from stream.errors import HeadraceError, InvalidInput, NotFound, SourceError, Unauthorized

TIMEOUT = 30.0


class Remote:
    """A worker under ``url``. Every call raises `InvalidInput` for a URL that is none, `Unauthorized`,
    `SourceError` where no worker answers, and what the worker answers in the place of a result."""

    def __init__(
        self, url: str, token: str | None = None, *, verify_tls: bool = True, timeout: float = TIMEOUT
    ) -> None:
        if not _is_url(url):
            raise InvalidInput(f"{url!r} is not an http or https URL", field="--url")
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        context = ssl.create_default_context()
        if not verify_tls:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        # No proxy: the worker is on this machine or in its network.
        self._opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context))

    def get(self, path: str) -> dict[str, Any]:
        return self._ask(Request(self._url + path, headers=self._headers))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {**self._headers, "Content-Type": "application/json"}
        return self._ask(Request(self._url + path, json.dumps(body).encode(), headers))

    def put(self, path: str, content: bytes, kind: str, **headers: str) -> dict[str, Any]:
        """Send a file of that type."""
        given = {**self._headers, "Content-Type": kind, **headers}
        return self._ask(Request(self._url + path, content, given, method="PUT"))

    def delete(self, path: str) -> dict[str, Any]:
        return self._ask(Request(self._url + path, headers=self._headers, method="DELETE"))

    def file(self, path: str) -> bytes:
        """The body of an answer as it is."""
        return self._read(Request(self._url + path, headers=self._headers))

    def _ask(self, request: Request) -> dict[str, Any]:
        try:
            answer = json.loads(self._read(request))
        except ValueError:
            raise SourceError(f"{request.full_url} does not answer with JSON; is that a worker?") from None
        if not isinstance(answer, dict):
            raise SourceError(f"{request.full_url} does not answer as a Headrace worker does")
        return answer

    def _read(self, request: Request) -> bytes:
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content: bytes = response.read()
                return content
        except HTTPError as error:
            with error:
                raise _answered(error, request.full_url, token="Authorization" in self._headers) from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise SourceError(f"no worker answers at {self._url}: {_told(reason)}") from None


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _told(reason: object) -> str:
    """Why there was no answer, and what to do about it where that can be told."""
    if isinstance(reason, ConnectionRefusedError):
        return "nothing listens there; `headrace serve` starts one, --url names another"
    if isinstance(reason, ssl.SSLCertVerificationError):
        text = reason.verify_message or "its certificate cannot be verified"
        return f"{text}; --insecure-tls takes one that it signed itself"
    if isinstance(reason, ssl.SSLError):
        return "what listens there does not speak TLS; http:// may be what is meant"
    return reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)


def _answered(error: HTTPError, url: str, *, token: bool) -> HeadraceError:
    if error.code == 401:
        how = "does not take this token: look at" if token else "asks for a token: give"
        return Unauthorized(f"{url} {how} --token or HEADRACE_TOKEN", field="--token")
    try:
        body = json.loads(error.read())
    except (ValueError, OSError):
        body = None
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return failure(body)
    if error.code == 404:
        return NotFound(f"{url} is not there; is that a Headrace worker, and is that part of it on?")
    return SourceError(f"{url} answered {error.code}")


def failure(data: Mapping[str, Any]) -> HeadraceError:
    """The error that a worker describes."""
    return rebuild(dict(data))
