"""What the tests of `container` share."""
