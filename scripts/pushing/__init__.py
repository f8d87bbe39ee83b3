"""What scripts/push.py is made of: the Docker client, the repository in ECR, the registry that holds its images."""


class PushError(Exception):
    """Ends the push; its message is the one line that the user reads."""


def one_line(text: object) -> str:
    return " ".join(str(text).split())
