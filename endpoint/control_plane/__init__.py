"""SageMaker's control plane: models, endpoint configurations and endpoints."""
