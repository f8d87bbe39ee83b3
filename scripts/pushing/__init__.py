"""The parts of scripts/push.py: the Docker client, the repository in ECR, and the registry with its images."""


class PushError(Exception):
    """An error that ends the push; its message is the one line that the user reads."""


def one_line(text: object) -> str:
    return " ".join(str(text).split())
