"""The wire form of AWS's APIs, read from botocore's own models."""
