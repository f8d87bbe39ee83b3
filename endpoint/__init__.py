"""A local asynchronous endpoint: what SageMaker does around the container, on AWS's own wire API."""
