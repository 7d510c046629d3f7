"""`GET /` and `GET /openapi.json`: what there is to ask."""

from aiohttp import web

from node.http.answers import answer
from node.http.keys import SERVICE
from node.http.openapi import openapi_document
from node.http.routes import ROUTES


async def get_index(request: web.Request) -> web.Response:
    facts = request.app[SERVICE].facts
    width = max(len(route.path) for route in ROUTES)
    lines = [f"meshnode: {facts.name} in the mesh {facts.mesh_name}", ""]
    for route in ROUTES:
        query = f"  ?{' '.join(route.query)}" if route.query else ""
        lines.append(f"{route.method:<5}{route.path:<{width}}  {route.summary}{query}")
    lines += ["", "Add ?pretty for JSON with line breaks. Errors are application/problem+json with a code and a fix."]
    return web.Response(text="\n".join(lines) + "\n")


async def get_openapi(request: web.Request) -> web.Response:
    return answer(request, openapi_document())
