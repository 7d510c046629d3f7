"""`meshnode doctor`: checks what a node needs of its machine; every finding has a verdict and a fix."""
