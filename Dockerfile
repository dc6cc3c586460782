# cnnfeat, and nothing else, as a user without rights:
#   docker build -t cnnfeat .
#   docker run --rm -v "$PWD:/work" cnnfeat run
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/cnnfeat && /opt/cnnfeat/bin/pip install --no-cache-dir .

FROM python:3.12-slim
COPY --from=build /opt/cnnfeat /opt/cnnfeat
ENV PATH=/opt/cnnfeat/bin:$PATH
RUN useradd --create-home cnnfeat && install -d -o cnnfeat /work
USER cnnfeat
WORKDIR /work
ENTRYPOINT ["cnnfeat"]
CMD ["--help"]
