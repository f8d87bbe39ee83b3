"""Accepts, dispatches and delivers requests: all from InvokeEndpointAsync to the notification."""
