"""What the application carries for its handlers."""

from dataclasses import dataclass

from aiohttp import web

from node.http.guard import Guard
from node.service.service import NodeService


@dataclass(slots=True)
class RequestCounter:
    open: int = 0
    refused: int = 0


SERVICE: web.AppKey[NodeService] = web.AppKey("service", NodeService)
GUARD: web.AppKey[Guard] = web.AppKey("guard", Guard)
REQUESTS: web.AppKey[RequestCounter] = web.AppKey("requests", RequestCounter)
