# The production image. scripts/build passes the arguments; a plain `docker build -t longhaul .` works, too.
#
#   docker run --rm --gpus all -p 127.0.0.1:8080:8080 -v "$PWD/model:/opt/ml/model:ro" longhaul serve
#
# BuildKit as of Docker 20.10 is enough. Each COPY of the last stage is a layer, from rare to frequent change;
# docs/image.md has their sizes.

# The base has the CUDA release that the pinned torch wheel is built for (constraints.txt: cuda-toolkit), because NVIDIA's
# compat libraries, which help an older driver, come with it.
ARG BASE_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04

# The distribution's Python: 3.12 on Ubuntu 24.04, 3.11 on Debian 12.
FROM ${BASE_IMAGE} AS python
# 1 is for torch.compile and Triton, which call a C compiler as they run; the headers in torch's wheels then stay, too.
ARG WITH_COMPILER=0
# hadolint ignore=DL3008,SC2086
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    compiler=""; \
    if [ "${WITH_COMPILER}" = 1 ]; then compiler="gcc libc6-dev python3-dev"; fi; \
    apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 ${compiler} && \
    rm -rf /var/log/apt /var/log/*.log /var/cache/ldconfig/aux-cache

# Torch's pins alone, so that a new web framework leaves torch's layers as they are.
FROM python AS pins
WORKDIR /pins
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt && \
    grep -E '^(torch|triton|cuda-|nvidia-|filelock|fsspec|jinja2|markupsafe|mpmath|networkx|sympy|typing-ext|setuptools|pip)' \
        constraints.txt > torch.txt

FROM python AS torch
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY --from=pins /pins/torch.txt /pins/
COPY scripts/image/slim scripts/image/split /usr/local/bin/
ARG WITH_COMPILER=0
# An index of your own comes as a secret (scripts/build): nothing of it stays in the image. The key is the secret's
# checksum, so that other settings don't get the cached layer.
ARG PIP_CONF_KEY=
# The files are moved in the step that installs them: moving them from a layer below would copy gigabytes.
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    --mount=type=secret,id=pip_conf,target=/root/.config/pip/pip.conf \
    python3 -m venv /opt/longhaul/.venv && \
    /opt/longhaul/.venv/bin/python -m pip install --no-compile -c /pins/torch.txt --upgrade pip && \
    /opt/longhaul/.venv/bin/python -m pip install --no-compile -c /pins/torch.txt torch && \
    slim /opt/longhaul/.venv && \
    split /opt/longhaul/.venv /pieces && \
    find /pieces -depth -exec touch -h -d @0 {} +

# Everything else that constraints.txt pins. pip sees the moved pieces through a .pth file, and leaves them in place.
FROM torch AS dependencies
COPY --from=pins /pins/requirements.txt /pins/constraints.txt /pins/
ARG WITH_COMPILER=0
ARG PIP_CONF_KEY=
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    --mount=type=secret,id=pip_conf,target=/root/.config/pip/pip.conf \
    site=$(echo /opt/longhaul/.venv/lib/python3*/site-packages) && \
    printf '%s\n' /pieces/*"${site}" > "${site}/pieces.pth" && \
    /opt/longhaul/.venv/bin/python -m pip install --no-compile -c /pins/constraints.txt -r /pins/requirements.txt && \
    /opt/longhaul/.venv/bin/python -m pip check && \
    rm "${site}/pieces.pth" && \
    slim /opt/longhaul/.venv && \
    find /opt/longhaul -depth -exec touch -h -d @0 {} +

FROM python AS code
WORKDIR /code
COPY container/ opt/longhaul/container/
COPY serve LICENSE opt/longhaul/
# Every user may read the code, whichever umask the builder had.
RUN chmod -R u=rwX,go=rX . && \
    PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash -s /code opt/longhaul/container && \
    mkdir -p usr/local/bin && ln -s /opt/longhaul/serve usr/local/bin/serve && \
    find . -depth -exec touch -h -d @0 {} +

FROM python
COPY --from=torch /pieces/cudnn/ /
COPY --from=torch /pieces/blas/ /
COPY --from=torch /pieces/cuda/ /
COPY --from=torch /pieces/collectives/ /
COPY --from=torch /pieces/triton/ /
COPY --from=torch /pieces/torch/ /
COPY --from=dependencies /opt/longhaul/ /opt/longhaul/
COPY --from=code /code/ /

# Every setting that a base image might have made differently is made here.
# - NVIDIA_DISABLE_REQUIRE: the NVIDIA runtime refuses a container whose base asks for a newer driver before a line of ours
#   runs; our own check knows the compat libraries, and says what to do.
# - HOME and the caches are below /tmp, for any user, with or without an entry in /etc/passwd, and a read-only root.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_DISABLE_REQUIRE=true \
    LONGHAUL_HOST=0.0.0.0 \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=longhaul \
    LOGNAME=longhaul \
    XDG_CACHE_HOME=/tmp/.cache \
    HF_HOME=/tmp/.cache/huggingface
WORKDIR /tmp
EXPOSE 8080
# SageMaker runs `docker run IMAGE serve`, without an init process before it.
ENTRYPOINT []
CMD ["serve"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      org.opencontainers.image.title=longhaul \
      org.opencontainers.image.description="Long LLM generation on Amazon SageMaker Asynchronous Inference" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}
