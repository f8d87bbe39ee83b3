"""From InvokeEndpointAsync to the notification: accepts, dispatches, calls the container and delivers."""
