"""The stores that hold a journal's files: a directory, or a prefix on S3."""
