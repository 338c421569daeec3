# kvray with all that a sweep needs: `docker build --tag kvray .`, then `docker run --gpus all kvray tune …`.
# `--build-arg VARIANT=cpu` builds it for machines without a GPU. cluster/README.md says more.
ARG VARIANT=cuda

# PyTorch's wheels bring CUDA's libraries themselves. So the smallest of NVIDIA's images is enough: it has the CUDA
# runtime and says which driver it needs.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS base-cuda
FROM ubuntu:24.04 AS base-cpu

FROM base-cpu AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /src/
COPY kvray /src/kvray
RUN python3 -m venv /build \
    && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

# hadolint ignore=DL3006
FROM base-${VARIANT}
ARG VARIANT
ARG EXTRAS=transformers,cluster
# All nodes of a cluster, and whoever submits to it, need the same Ray.
ARG RAY_VERSION=2.60.0

# torch.compile needs a compiler and Python's headers; KubeRay's probes need wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates g++ gcc libc6-dev python3 python3-dev python3-venv wget \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's own user has the id that most people have on their machine. kvray takes it, so that mounted folders are its own.
RUN if id ubuntu; then userdel --remove ubuntu; fi \
    && useradd --create-home --uid 1000 --shell /bin/bash kvray \
    && install --directory --owner kvray --group kvray /opt/kvray /cache /results
# By number, for Kubernetes' runAsNonRoot.
USER 1000

COPY --from=wheel /wheels /wheels
# uv knows where PyTorch's wheels without CUDA are.
RUN python3 -m venv /opt/kvray \
    && if [ "$VARIANT" = cpu ]; then \
        /opt/kvray/bin/pip install --no-cache-dir "uv>=0.7,<1" \
        && /opt/kvray/bin/uv pip install --no-cache --python /opt/kvray/bin/python --torch-backend cpu "torch>=2.11,<2.14" \
        && /opt/kvray/bin/pip uninstall --yes uv; \
    fi \
    && set -- /wheels/kvray-*.whl \
    && /opt/kvray/bin/pip install --no-cache-dir "$1[$EXTRAS]" "ray==$RAY_VERSION"

ENV PATH=/opt/kvray/bin:$PATH \
    HF_HOME=/cache/huggingface \
    KVRAY_CACHE=/cache/kvray \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_worker_niceness=0
VOLUME ["/cache", "/results"]
WORKDIR /results
ENTRYPOINT ["kvray"]
CMD ["--help"]
