"""A server of buckets on this machine, in a process of its own."""

import contextlib
import os
import subprocess
import sys

# moto answers one request at a time: its look and its put would otherwise not be one act. A client
# that is stopped in the middle of a request must not stop the others, so the request is read before
# its turn, and the answer is sent after it.
SERVE = """
import io
import threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
moto = DomainDispatcherApplication(create_backend_app)
turn = threading.Lock()
def answer(environ, start_response):
    ended = environ.get("wsgi.input_terminated")
    size = -1 if ended else int(environ.get("CONTENT_LENGTH") or 0)
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(size))
    with turn:
        return list(moto(environ, start_response))
server = make_server("127.0.0.1", 0, answer, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""
USER = {
    "AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1",
}  # fmt: skip


@contextlib.contextmanager
def serve(**environment):
    """The variables by which a process finds the server."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        port = process.stdout.readline().strip()
        yield USER | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        process.kill()
        process.communicate()
