"""Imports rituals of other packages and prints what they declare; run as a child process by `node.rituals.registry`."""

import json
import os
import sys
from typing import Any

from node.rituals.definition import RitualDefinition
from node.rituals.registry import describe_error, load_declaration


def main() -> None:
    requests = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what imports print must not mix with the answers
    for name, target, source in requests:
        try:
            answer = _answer(load_declaration(name, target, source))
        except (Exception, SystemExit) as error:
            answer = {"error": describe_error(error)}
        print("meshnode-ritual " + json.dumps({"name": name, **answer}), file=out, flush=True)


def _answer(definition: RitualDefinition) -> dict[str, Any]:
    parameters = None
    if definition.parameters is not None:
        parameters = []
        for parameter in definition.parameters:
            fields = parameter._asdict()
            if parameter.is_required:
                fields["default"] = None
            parameters.append((fields, parameter.is_required))
    return {
        "version": definition.version,
        "kind": definition.kind,
        "description": definition.description,
        "parameters": parameters,
        "timeout_s": definition.timeout_s,
        "concurrency": definition.concurrency,
    }


if __name__ == "__main__":
    main()
