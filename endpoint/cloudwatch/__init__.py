"""The reports to CloudWatch: metrics, the data log and the containers' logs."""
