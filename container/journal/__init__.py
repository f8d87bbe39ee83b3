"""What outlives the container: the output of jobs, in a directory or on S3. Blocking: for worker threads."""
