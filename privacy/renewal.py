"""A device asks for its next certificate over the connection that the present one made."""

from __future__ import annotations

import msgspec

from outrider.errors import PeerUntrusted, RemoteProtocolError
from outrider.privacy.identity import Identity, genuine

METHOD = "/outrider.v1.Pairing/Renew"
_PURPOSE = b"certificate renewal"
MOST = 16384


class Renewal(msgspec.Struct, frozen=True, array_like=True):
    request: bytes
    """DER, PKCS #10."""
    signature: bytes
    """Of the device's identity: a stolen certificate alone can not renew itself."""

    @classmethod
    def asked(cls, identity: Identity, request: bytes) -> bytes:
        return msgspec.msgpack.encode(cls(request, identity.sign(_PURPOSE, request)))

    @classmethod
    def proven(cls, data: bytes, public: bytes) -> bytes:
        """The request. Raises PeerUntrusted, RemoteProtocolError."""
        try:
            found = msgspec.msgpack.decode(data[:MOST], type=cls)
        except msgspec.DecodeError:
            raise RemoteProtocolError("this is no request for a certificate") from None
        if not genuine(public, _PURPOSE, found.request, found.signature):
            raise PeerUntrusted(
                "the request for a certificate is not signed by its device",
                why="its key is not the one that was paired",
                effect="no certificate was issued",
                todo="pair again: outrider link add NAME URL --pair",
            )
        return found.request
