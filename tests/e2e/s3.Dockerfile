# moto's S3 server, which test_s3.py runs in the cluster as localhost/emopfx-s3:dev.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}
RUN python -m venv /opt/moto && /opt/moto/bin/python -m pip install --no-cache-dir "moto[server]>=5.1,<6"
ENV PATH=/opt/moto/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
ENTRYPOINT ["moto_server", "--host", "0.0.0.0", "--port", "5000"]
