"""The state that outlives the gateway, in SQLite: resources, the queue and the outbox."""
