"""Requests whose answers are recorded on one build of the server and compared with another's."""
