# The gateway on plain uvicorn, as an image. Keys and settings come from the environment; mount a volume on
# /data to keep counters and tokens when the container is removed.
FROM python:3.13-slim

WORKDIR /app
COPY function/requirements.txt .
RUN pip install --no-cache-dir --requirement requirements.txt
COPY function/ .

RUN useradd --uid 10001 --no-create-home pollux && install --directory --owner pollux --mode 0700 /data
USER pollux
VOLUME /data

ENV PORT=8080 POLLUX_DATA=/data PYTHONUNBUFFERED=1
EXPOSE 8080
# exec: SIGTERM must reach the gateway itself, which then finishes running requests.
CMD ["sh", "-c", "exec python -m pollux serve --host 0.0.0.0 --port \"$PORT\""]
