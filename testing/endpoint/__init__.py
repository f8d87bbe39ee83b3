"""Helpers of the tests of `endpoint`."""
