"""The runners of instances' containers: processes of this machine, or an engine's containers."""
