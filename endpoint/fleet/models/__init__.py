"""The model artefacts of instances: found, downloaded and kept."""
