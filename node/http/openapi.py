"""The OpenAPI 3.1 document, made from the table of routes."""

import re
from functools import cache
from typing import Any

from node import __version__
from node.http.backup import CONTENT_TYPE as BACKUP_TYPE
from node.http.problems import CONTENT_TYPE
from node.http.routes import ROUTES, Route
from node.http.schemas import QUERY, schemas


@cache
def openapi_document() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "meshnode", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, **QUERY.get(name, {"schema": {"type": "string"}})}
        for name in route.query
    ]
    if route.name == "submit_session":
        parameters.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string"}})
    if route.name == "watch_events":
        parameters.append({"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"}})
    kinds = {"watch_events": "text/event-stream", "index": "text/plain", "get_backup": BACKUP_TYPE}
    kind = kinds.get(route.name, "application/json")
    schema = {"$ref": f"#/components/schemas/{route.answer}"} if kind == "application/json" else {"type": "string"}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "done", "content": {kind: {"schema": schema}}},
            "default": {
                "description": "refused",
                "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if route.name == "submit_session":
        operation["responses"]["201"] = {**operation["responses"]["200"], "description": "accepted"}
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.name == "submit_session",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{route.body}"}}},
        }
    return operation
