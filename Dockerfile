# Two images of the same installation:
#   docker build --target runtime -t vit-pretrain .          for one machine; its program is vit-pretrain
#   docker build --target slurm -t vit-pretrain:slurm .      for pyxis/enroot and Apptainer: no entry point, any user
# CUDA must have the major version that torch was built for (torch.version.cuda): DeepSpeed compiles operators with nvcc.
ARG CUDA=13.0.1

FROM ubuntu:24.04 AS wheel
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir "setuptools>=70.1,<90"
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY configs configs
COPY slurm slurm
COPY pipelines pipelines
COPY pretrain pretrain
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ ibverbs-providers libibverbs1 librdmacm1 ninja-build python3 \
        python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
RUN python3 -m venv /opt/vit \
    && DS_BUILD_OPS=0 /opt/vit/bin/pip install --no-cache-dir "$(echo /dist/*.whl)[completion,onnx,parquet,s3,wandb]" \
    && rm -rf /dist
# Any user may run it: operators that are compiled on first use go to a folder that everybody can write to.
ENV PATH=/opt/vit/bin:$PATH \
    TORCH_EXTENSIONS_DIR=/tmp/torch_extensions \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work

FROM base AS slurm
# The job scripts name this Python: RUN_PYTHON=/opt/vit/bin/python in slurm/site.sh.
CMD ["/bin/bash"]

FROM base AS runtime
RUN useradd --create-home vit && chown vit /work
USER vit
ENTRYPOINT ["vit-pretrain"]
CMD ["--help"]
