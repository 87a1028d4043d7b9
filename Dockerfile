# The worker.
#
#   docker build -t headrace .                                                          for a CPU
#   docker build -t headrace --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .  for CUDA
#   docker run -p 8000:8000 -e HEADRACE_TOKEN=... [--gpus all] headrace
#
# A worker that other machines reach needs a token, so without HEADRACE_TOKEN it says so and ends. EXTRAS are those of
# pyproject.toml, PIP_ARGS go to pip (another index, torch for CPUs alone).
ARG BASE=python:3.12.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=engine,batch
ARG PIP_ARGS=
# Bases for CUDA have no Python of their own.
# hadolint ignore=DL3008
RUN if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -m venv /opt/headrace
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY stream stream
COPY workflows workflows
COPY byoc byoc
COPY headrace headrace
ENV PIP_CACHE_DIR=/var/cache/pip
# hadolint ignore=DL3042,SC2086
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/headrace/bin/pip install --disable-pip-version-check ${PIP_ARGS} -c constraints.txt ".${EXTRAS:+[${EXTRAS}]}" \
    && find /opt/headrace -name '__pycache__' -type d -prune -exec rm -rf {} +

FROM ${BASE}
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends python3 \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --create-home --uid 10001 headrace \
    && mkdir /models /workflows \
    && chown headrace /models /workflows
COPY --from=build /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEADRACE_HOST=0.0.0.0 \
    HEADRACE_PORT=8000 \
    HEADRACE_MODELS_FOLDER=/models \
    HEADRACE_WORKFLOWS=/workflows \
    HF_HOME=/models/hub \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER 10001
WORKDIR /home/headrace
VOLUME ["/models", "/workflows"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# Without TLS; a worker that listens by TLS needs a check of its own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import json, os, urllib.request as u; raise SystemExit(json.load(u.urlopen('http://127.0.0.1:' + os.environ['HEADRACE_PORT'] + '/health', timeout=4))['status'] == 'ERROR')"]
ENTRYPOINT ["headrace"]
CMD ["serve"]
