"""The use-cases of a node, free of any face: submit, cancel, read, wait, watch, status."""
