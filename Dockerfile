# cnnfeat, and nothing else, as a user without rights:
#   docker build -t cnnfeat .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" -v cnnfeat-data:/data cnnfeat run
# What is made lies in this folder and is yours; what is downloaded is kept in the volume.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/cnnfeat && /opt/cnnfeat/bin/pip install --no-cache-dir .

FROM python:3.12-slim
COPY --from=build /opt/cnnfeat /opt/cnnfeat
ENV PATH=/opt/cnnfeat/bin:$PATH HOME=/data XDG_CACHE_HOME=/data
RUN useradd --home-dir /data cnnfeat && install -d -m 1777 /work /data
USER cnnfeat
WORKDIR /work
ENTRYPOINT ["cnnfeat"]
CMD ["--help"]
