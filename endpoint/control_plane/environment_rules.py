"""Rules for a model's Environment, whose container may be a process on the developer's own machine."""

from __future__ import annotations

from collections.abc import Mapping

MAX_BYTES = 32 * 1024
"""Maximum bytes of all keys and values, as AWS documents; the service's model has the other limits."""

# In a container these concern the image alone. Here they would change which code runs, with whose files and against
# which cloud: a program of the host (the loader, the shell, the interpreter) reads each of them before `serve` does.
HIJACKING_PREFIXES = (
    "LD_",  # the dynamic loader
    "DYLD_",
    "AWS_ENDPOINT_URL",  # the container would talk to another AWS than this one
    "AWS_CONTAINER_CREDENTIALS_",
)
HIJACKING_NAMES = frozenset(
    {
        # which programs, libraries and data files are found
        *("PATH", "HOME", "SHELL", "GCONV_PATH", "GLIBC_TUNABLES", "LOCPATH", "NLSPATH", "HOSTALIASES", "LOCALDOMAIN"),
        # what a shell runs first, and how it reads
        *("ENV", "BASH_ENV", "BASHOPTS", "SHELLOPTS", "IFS", "PS4", "PROMPT_COMMAND", "CDPATH", "GLOBIGNORE"),
        # what an interpreter runs or imports first
        *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONPLATLIBDIR", "PYTHONEXECUTABLE"),
        *("PYTHONWARNINGS", "PYTHONBREAKPOINT", "PYTHONINSPECT", "PYTHONPYCACHEPREFIX"),
        *("NODE_OPTIONS", "NODE_PATH", "PERL5OPT", "PERL5LIB", "PERL5DB", "RUBYOPT", "RUBYLIB"),
        *("CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"),
        # what OpenSSL loads
        *("OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES"),
        # the developer's own credentials
        *("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE_ARN"),
        *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CA_BUNDLE"),
    }
)


def would_hijack(name: str) -> bool:
    """Return whether the host's own programs read a variable of this name."""
    return name in HIJACKING_NAMES or name.startswith(HIJACKING_PREFIXES)


def rejection_reason(environment: Mapping[str, str], *, is_process: bool = True) -> str | None:
    """Return why an environment is refused, or None. The sentence names the entry, never its value.

    A real container, which is no process of this machine (`is_process`), may have all variables.
    """
    size = sum(len(key.encode()) + len(value.encode()) for key, value in environment.items())
    if size > MAX_BYTES:
        return f"Environment has {size} bytes in its keys and values; at most {MAX_BYTES} are allowed."
    for key, value in environment.items():
        if is_process and would_hijack(key):
            return (
                f'Environment sets "{key}", which the local endpoint refuses: '
                "the container is a process on this machine, and its host reads that variable."
            )
        if "\0" in value:
            return f'Environment sets "{key}" to a value with a NUL character, which no process can be given.'
    return None
