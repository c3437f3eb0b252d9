# CPU:   docker build -t vpretrain .
# CUDA:  docker build -t vpretrain:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# On Linux PyPI's torch brings CUDA's libraries itself: the base image stays, and the host needs the driver and NVIDIA's container toolkit.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/
# First torch alone, from its own index, which may lack the versions of all else.
RUN pip install --no-cache-dir --no-deps --constraint /tmp/constraints.txt --index-url "${TORCH_INDEX}" torch
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt /tmp/wheel/*.whl \
    && useradd --create-home --uid 1000 vpretrain
USER 1000
WORKDIR /home/vpretrain
ENTRYPOINT ["vpretrain"]
CMD ["--help"]
