"""Helpers of the tests of `container`."""
