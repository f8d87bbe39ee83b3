"""Work that outlives the requests for it, and its generations."""
