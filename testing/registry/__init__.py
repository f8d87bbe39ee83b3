"""A fake registry and a fake ECR for the tests of scripts/push."""
