# pfdiff serve in a container. CPU: docker build -t pfdiff .
# NVIDIA: docker build --build-arg TORCH=cu130 --build-arg EXTRAS=serve,triton,tensorrt -t pfdiff:cuda .
# Then: docker run --rm -p 8000:8000 -e PFDIFF_API_KEY=... -v "$PWD/fashion.engine:/engines/fashion.engine" pfdiff /engines/fashion.engine
FROM python:3.12-slim

# A build of torch that uv knows: cpu, cu126, cu128, cu130. Extras of pyproject.toml.
ARG TORCH=cpu
ARG EXTRAS=serve,openvino

RUN apt-get update && apt-get install -y --no-install-recommends g++ libgomp1 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir uv \
 && uv pip install --system --no-cache --torch-backend "$TORCH" -c constraints.txt ".[$EXTRAS]" \
 && rm -rf /source/*

RUN useradd --create-home pfdiff
USER pfdiff
WORKDIR /home/pfdiff
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"
# PFDIFF_API_KEY is the key that clients send; without it anybody may sample, and the log says so.
ENTRYPOINT ["pfdiff", "serve", "--host", "0.0.0.0", "--port", "8000"]
