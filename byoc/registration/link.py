"""HTTP to an orchestrator over one connection that stays open: its end tells of a restart."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

from stream.errors import HeadraceError, InvalidInput
from stream.trickle.http1 import ClientConnection, Endpoint, open_connection

MAX_ANSWER = 4096


class RegistrationError(HeadraceError):
    """The orchestrator did not take a registration; ``final`` when asking again alone will not help."""

    code = "registration_failed"
    status = 502

    def __init__(self, message: str, *, field: str | None = None, final: bool = False) -> None:
        super().__init__(message, field=field)
        self.final = final


class OrchestratorLink:
    """Registers and unregisters at ``url`` with the orchestrator's ``secret``. For one task at a time.

    ``verify_tls`` false accepts any certificate (go-livepeer signs its own). Raises `InvalidInput` for what
    is no URL.
    """

    def __init__(self, url: str, secret: str, *, verify_tls: bool, timeout: float = 5.0) -> None:
        self.url = url.rstrip("/")
        if "://" not in url or urlsplit(self.url).scheme not in ("http", "https"):
            raise InvalidInput(
                f"ORCH_URL must be the orchestrator's service URL, as https://host:8935, not {url[:80]!r}",
                field="ORCH_URL",
            )
        if not secret or not secret.isprintable() or not secret.isascii():
            raise InvalidInput("ORCH_SECRET must be printable ASCII, as any header", field="ORCH_SECRET")
        self._endpoint = Endpoint.parse(f"{self.url}/capability")
        self._secret = secret
        self._verify_tls = verify_tls
        self._timeout = timeout
        self._connection: ClientConnection | None = None

    async def register(self, body: bytes) -> None:
        """Register one capability, given as JSON; raises `RegistrationError`."""
        await self._post("register", body)

    async def unregister(self, name: str) -> None:
        """Take a capability back; one that is not registered is no error. Raises `RegistrationError`."""
        await self._post("unregister", name.encode())

    async def wait_lost(self) -> None:
        """Return when the orchestrator has closed the connection; never, when it keeps none open."""
        if self._connection is None:
            await asyncio.Event().wait()
        else:
            await self._connection.wait_gone()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _post(self, verb: str, body: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                status, text = await self._ask(verb, body)
        except OSError as error:
            await self.close()
            raise RegistrationError(unreachable(self.url, error, self._timeout)) from None
        problem = refusal(self.url, status, text)
        if problem is not None:
            raise problem

    async def _ask(self, verb: str, body: bytes) -> tuple[int, str]:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                return await self._exchange(connection, verb, body)
            except ConnectionError:
                # It was closed while nobody used it; both requests may be made twice.
                pass
        fresh = await open_connection(self._endpoint, verify_tls=self._verify_tls, timeout=self._timeout)
        return await self._exchange(fresh, verb, body)

    async def _exchange(self, connection: ClientConnection, verb: str, body: bytes) -> tuple[int, str]:
        keep = False
        try:
            headers = {"Authorization": self._secret, "Content-Type": "application/json"}
            await connection.send_head("POST", f"{self._endpoint.path}/{verb}", headers, body=True)
            connection.put_body(body)
            await connection.end_body()
            head = await connection.response()
            answer = await connection.read_body(MAX_ANSWER)
            keep = connection.reuse()
        finally:
            if keep:
                self._connection = connection
            else:
                await connection.close()
        return head.status, answer.decode("utf-8", "replace").strip()


def unreachable(url: str, error: OSError, timeout: float) -> str:
    """Why an orchestrator could not be asked, in words that say what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {url} is not valid ({error.verify_message}); go-livepeer signs its own: "
            "accept it by HEADRACE_VERIFY_TLS=0"
        )
    if isinstance(error, ssl.SSLError):
        return f"{url} does not speak TLS ({error.reason or error}): try http:// in ORCH_URL"
    if isinstance(error, TimeoutError):
        return f"{url} did not answer within {timeout:g} s"
    return f"{url} cannot be reached: {error.strerror or error or type(error).__name__}"


def refusal(url: str, status: int, text: str) -> RegistrationError | None:
    """What an answer other than 200 means; None for 200."""
    if status == 200:
        return None
    if status == 400 and "invalid authorization" in text:
        return RegistrationError(
            f"{url} refuses the secret: ORCH_SECRET must be what the orchestrator has as -orchSecret",
            field="ORCH_SECRET",
            final=True,
        )
    if status == 400 and "HTTPS server" in text:
        return RegistrationError(
            f"{url} speaks TLS: write https:// in ORCH_URL", field="ORCH_URL", final=True
        )
    if status in (404, 405):
        return RegistrationError(
            f"{url} answers {status}: ORCH_URL must be the service address of an orchestrator that takes "
            "external capabilities (not its CLI port, and not a gateway)",
            field="ORCH_URL",
            final=True,
        )
    said = f": {text[:300]}" if text else ""
    return RegistrationError(f"{url} refuses the registration with {status}{said}", final=400 <= status < 500)
