# One image for all of the platform's services: what a container runs is its command.
#
# Layers, from what changes least to what changes most: system packages, Python libraries, Java components, code. A
# change of code rebuilds the last one in seconds.
#
#   docker build -t deeplambda .                            for machines without a GPU
#   docker build -t deeplambda --build-arg DEVICE=gpu .     with all of CUDA, 4 GB more
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS system
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates openjdk-17-jre-headless procps python3 \
    && rm -rf /var/lib/apt/lists/* \
    && ln --symbolic "java-17-openjdk-$(dpkg --print-architecture)" /usr/lib/jvm/java-17
# The system's certificates, to which a company may have added its own.
ENV UV_SYSTEM_CERTS=1 \
    JAVA_HOME=/usr/lib/jvm/java-17 \
    PATH=/opt/deeplambda/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# What is built with stays here: no compiler, package manager or cache of packages reaches the image.
FROM system AS libraries
ARG DEVICE=cpu
WORKDIR /build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
COPY requirements-uv.txt constraints.txt pyproject.toml ./
COPY scripts/install-libraries scripts/
RUN scripts/install-libraries /opt/deeplambda/venv "$DEVICE"

# Only what fetching is written in, so that other code may change without fetching again.
FROM libraries AS components
COPY src/deeplambda/__init__.py src/deeplambda/config.py src/deeplambda/errors.py src/deeplambda/
COPY src/deeplambda/jvm/ src/deeplambda/jvm/
RUN PYTHONPATH=src DEEPLAMBDA_CACHE_DIR=/opt/deeplambda/cache \
    python -c "from deeplambda.config import load_settings; from deeplambda.jvm.jars import fetch_components; \
fetch_components(load_settings(), ['metastore', 'spark'])" \
    && rm -rf /opt/deeplambda/cache/incoming /opt/deeplambda/cache/*.lock

FROM libraries AS code
COPY src src
COPY batch_layer batch_layer
COPY speed_layer speed_layer
COPY serving_layer serving_layer
COPY README.md LICENSE ./
RUN uv pip install --python /opt/deeplambda/venv/bin/python --no-deps --no-build-isolation --target /opt/deeplambda/code .

FROM system
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
LABEL org.opencontainers.image.title="DeepLambda" \
    org.opencontainers.image.description="A Lambda-architecture data platform for deep learning: one image for all layers" \
    org.opencontainers.image.licenses="Apache-2.0"
# One user for all: the numbers are those of the official images that read secrets made by this one. A new volume takes
# its owner from the folder that it is mounted on.
RUN groupadd --gid 1000 deeplambda \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /data --shell /usr/sbin/nologin deeplambda \
    && install --directory --owner deeplambda --group deeplambda /data{,/checkpoints,/downloads/mnist,/gateway,/spark} \
    /secrets{,/operator,/archive,/gateway,/generations,/grafana,/kafka,/metastore,/model,/mqtt,/mqtt-bridge,/mysql} \
    /secrets/{query,s3,spark,stream,superset,views} \
    /volumes/{kafka-data,s3-data,mysql-data,stream-checkpoints,archive-checkpoints,grafana-data,mqtt,secrets-operator}
COPY --from=libraries /opt/deeplambda/venv /opt/deeplambda/venv
COPY --from=components /opt/deeplambda/cache /opt/deeplambda/cache
COPY --from=code /opt/deeplambda/code /opt/deeplambda/code
COPY examples /opt/deeplambda/examples
# hadolint ignore=DL3064
ENV PATH=/opt/deeplambda/code/bin:$PATH \
    PYTHONPATH=/opt/deeplambda/code:/opt/deeplambda \
    DEEPLAMBDA_APPLICATIONS_DIR=/opt/deeplambda/examples \
    DEEPLAMBDA_CACHE_DIR=/opt/deeplambda/cache \
    DEEPLAMBDA_DATA_DIR=/data \
    DEEPLAMBDA_LISTEN_HOST=0.0.0.0 \
    DEEPLAMBDA_SECRETS_DIR=/secrets \
    HOME=/data \
    MALLOC_ARENA_MAX=2 \
    OMP_NUM_THREADS=1
WORKDIR /opt/deeplambda
USER 1000:1000
CMD ["deeplambda", "--help"]
