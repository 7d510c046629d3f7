"""Looks up host names on threads of its own: one whose name server does not answer holds up nothing else.

`getaddrinfo` cannot be cancelled. On the threads of `asyncio.to_thread` a few seeds with names would take all of them
while no name server is there, and nothing that needs one would happen, nor would the daemon end.
"""

import asyncio
import contextlib
import ipaddress
import socket
import threading

from mesh.limits import LOOKUPS_MAX


class Names:
    """A name is looked up once at a time, however many ask. Nothing is remembered: addresses change."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, host: str) -> list[str]:
        """Of `host`, likeliest first; of an address itself. Raises OSError."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return await asyncio.shield(self._asked.get(host) or self._ask(host))
        return [host]

    def _ask(self, host: str) -> asyncio.Future[list[str]]:
        if len(self._asked) >= LOOKUPS_MAX:
            raise OSError(f"the name servers do not answer: {LOOKUPS_MAX} names are being looked up already")
        loop = asyncio.get_running_loop()
        answer = self._asked[host] = loop.create_future()

        def found(addresses: list[str] | OSError) -> None:
            del self._asked[host]
            if isinstance(addresses, OSError):
                answer.set_exception(addresses)
                answer.exception()  # seen, in case nobody waits any more
            else:
                answer.set_result(addresses)

        def look() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(found, _look_up(host))

        threading.Thread(target=look, name=f"look up {host}", daemon=True).start()
        return answer


def _look_up(host: str) -> list[str] | OSError:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except ValueError as error:  # a label of more than 63 characters, or a zero byte
        return OSError(f"not a host name: {error}")
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
