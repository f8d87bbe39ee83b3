"""What outlives the gateway, in SQLite: resources, the queue and what is still to be sent."""
