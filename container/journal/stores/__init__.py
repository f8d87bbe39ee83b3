"""Where a journal's files lie: a directory or a prefix on S3."""
