"""What the tests of `endpoint` share."""
