"""The one port: answers for SageMaker, its scaling and its alarms, and forwards all other requests to the backend."""
