"""Application Auto Scaling: targets, policies, schedules, and what they decide."""
