"""CloudWatch's metric alarms: judged, kept, and acted on."""
