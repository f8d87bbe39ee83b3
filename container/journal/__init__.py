"""Output of jobs that outlives the container, in a directory or on S3. All calls block: they are for worker threads."""
