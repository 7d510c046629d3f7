"""What a node does for the Leaf nodes that hang on it, and the words in which both speak."""
