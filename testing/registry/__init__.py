"""A registry and an ECR for the tests of scripts/push."""
