"""HTTP/1.1 as uvicorn speaks it, with an answer in our form to what is none, and to those who offer to speak HTTP/2."""

import uuid

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from aries_images import Detail, contract
from gateway import response


class Protocol(HttpToolsProtocol):
    """For uvicorn's option `--http`.

    Java's HttpClient and `curl --http2` offer with each request to go on in HTTP/2. Who does not want that answers in
    HTTP/1.1, but the parser takes such an offer for accepted and drops the body. So the request is read once more
    without the offer.
    """

    #: The request that is being answered; uvicorn itself keeps only the last one that came.
    _answering: RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        """Bytes of one request or more."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._is_an_offer():
                self._decline(data[offer.args[0] :])
            else:
                self.send_400_response("CONNECT is for proxies")
        except httptools.HttpParserError:
            self.send_400_response("this is no request of HTTP/1.1")

    def on_headers_complete(self) -> None:
        """Uvicorn's, for what is not to be read once more."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """As above."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _is_an_offer(self) -> bool:
        return any(name == b"upgrade" for name, _ in self.headers)

    def _decline(self, rest: bytes) -> None:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there to be answered."""
        self._give_up()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        """Keep what is being answered from writing to a line that is closed, over which uvloop raises."""
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """Say so, and hang up: where the next request would begin is anybody's guess."""
        bad = contract.INVALID_PARAMETER
        error = response.HttpError(bad.name, bad.status, bad.message)
        answer = response.of_error(error, str(uuid.uuid4()), Detail(None, "malformed_message", msg))
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self._give_up()
        self.transport.write(STATUS_LINE[answer.status_code] + lines + b"\r\n" + bytes(answer.body))
        self.transport.close()
