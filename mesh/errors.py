"""The errors of the mesh package. Every one has a stable `code` and a message that says what to do."""


class MeshError(Exception):
    """Root of all errors this package raises.

    Attributes:
        code: stable snake_case word for programs; the message is for people and may change.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SecretError(MeshError):
    """The mesh secret cannot be used: `secret_missing`, `secret_readable`, `secret_malformed`, `secret_exists`."""


class IdentityError(MeshError):
    """The identity key cannot be used: `identity_readable`, `identity_malformed`."""


class BindError(MeshError):
    """The daemon cannot listen: `secret_required`, `port_in_use`, `bind_failed`."""


class PeerUnavailable(MeshError):
    """No link to the peer (`no_link`), it closed before the answer (`link_lost`), or its queue is full (`backlogged`).

    After `link_lost` the request may or may not have been carried out. Retry only what is idempotent.
    """


class RequestTimedOut(MeshError):
    """No answer in time (`timed_out`). The request may or may not have been carried out."""


class RemoteFailed(MeshError):
    """The peer answered with a failure; `code` is the peer's; `busy`, `unknown_method`, `internal` are the mesh's."""


class FrameError(MeshError):
    """Bytes that are not our frames: `oversized_frame`, `garbage`. The link cannot be resynchronised and is closed."""


class HandshakeRefused(MeshError):
    """We or the peer refused the other.

    Attributes:
        by_peer: whether the peer refused us (True) or we refused it (False).
    """

    def __init__(self, code: str, message: str, *, by_peer: bool = False) -> None:
        super().__init__(code, message)
        self.by_peer = by_peer
