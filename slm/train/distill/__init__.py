"""Learning from a teacher: a larger model that reads the same rows, or a cache of what it said of them."""
