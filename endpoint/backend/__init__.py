"""The AWS behind the endpoint: S3, SNS, SQS, CloudWatch and IAM of an emulator, or of a given address."""
