"""The rituals that come with meshnode, one a file."""
