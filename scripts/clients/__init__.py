"""Programs that use a client as its documentation says, each run in the client's own environment."""
