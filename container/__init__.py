"""Longhaul's container: a continuous-batching LLM server for SageMaker Asynchronous Inference."""

__version__ = "0.2.0"
