"""The one port: answers SageMaker's requests and forwards all others to the backend."""
