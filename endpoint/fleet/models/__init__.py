"""The model data of instances: found, downloaded and kept."""
