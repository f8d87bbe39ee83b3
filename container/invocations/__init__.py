"""One request, from its items to their results."""
