"""The HTTP face of a node: thin routes over `node.service.service`."""
