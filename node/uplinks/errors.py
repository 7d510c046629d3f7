"""How a parent refuses a Leaf; the code reaches the Leaf."""


class UplinkError(Exception):
    """Codes: `not_attached` (attach first), `not_registered_yet`, `not_recorded_yet`, `malformed`, `busy`,
    `unknown_stream`; and those of a registration that the state machine refuses."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
