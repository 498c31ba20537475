"""Kernels that start at once: forks of one process that has imported torch and the plotting libraries already.

``with warm_kernels() as environment:`` starts that process; in this environment Jupyter's kernel ``python3`` is a fork
of it.  What Jupyter starts is this file as a small *client*: it passes its arguments, environment and standard streams
over a socket to a fork, which becomes the kernel.  Each ends with the other.  Without a server the client becomes a
usual kernel itself.  It starts for each page, so this file imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

IMPORTS = ("dode.experiments.plots", "dode.experiments", "ipykernel.kernelapp", "ipykernel.ipkernel", "torch._dynamo")
INLINE = "module://matplotlib_inline.backend_inline"  # what a kernel would choose; matplotlib reads it when imported


@contextlib.contextmanager
def warm_kernels() -> Iterator[dict[str, str]]:
    """Serve kernels while the block runs, to processes that have this environment."""
    with tempfile.TemporaryDirectory(prefix="dode-") as folder:
        address, spec = f"{folder}/socket", Path(folder, "kernels", "python3", "kernel.json")
        argv = [sys.executable, "-S", str(Path(__file__).resolve()), "client", address, "-f", "{connection_file}"]
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
        path = os.pathsep.join(filter(None, (folder, os.environ.get("JUPYTER_PATH"))))
        with socket.socket(socket.AF_UNIX) as listener:  # it listens at once, so that no client comes too early
            listener.bind(address)
            listener.listen(100)
            server = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), "server", str(listener.fileno())],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "MPLBACKEND": INLINE}, start_new_session=True, pass_fds=[listener.fileno()],
            )  # fmt: skip
        try:
            yield {**os.environ, "JUPYTER_PATH": path}
        finally:
            server.communicate()  # closes its input, at which it ends


def serve(listener: int) -> None:
    """Fork a kernel for each client of a listening socket, until the standard input is closed."""
    import gc
    import importlib

    with socket.socket(fileno=listener) as server:
        for name in IMPORTS:  # clients wait
            importlib.import_module(name)
        gc.freeze()  # a collection would copy the pages that the forks share
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for the forks
        while sys.stdin not in (ready := select.select([server, sys.stdin], [], [])[0]):
            assert server in ready
            client, _ = server.accept()
            if os.fork() == 0:
                break
            client.close()
        else:
            return
    become_kernel(client)


def become_kernel(client: socket.socket) -> None:
    """Take over the streams, environment and folder of a client, and run the kernel it asks for."""
    import numpy as np
    import torch
    from ipykernel.kernelapp import launch_new_instance

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _, streams, *_ = socket.recv_fds(client, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    with client.makefile() as lines:
        request = json.loads(lines.readline())
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        torch.set_num_threads(int(threads))  # OpenMP has read the server's
    torch.seed()  # else all forks draw the same random numbers where none are seeded
    np.random.seed()
    client.sendall(b"%d\n" % os.getpid())
    threading.Thread(target=lambda: (client.recv(1), os._exit(1)), daemon=True).start()
    sys.argv = ["ipykernel_launcher", *request["arguments"]]
    launch_new_instance()


def ask(address: str, arguments: list[str]) -> None:
    """Have a kernel forked, pass signals on to it, and end when it ends or when the parent does."""
    parent = os.getppid()
    environment = {k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"}  # its parent is the server
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
            socket.send_fds(server, [b"."], [0, 1, 2])
            request = {"environment": environment, "folder": os.getcwd(), "arguments": arguments}
            server.sendall(json.dumps(request).encode() + b"\n")
            kernel = int(server.recv(32))
        except (OSError, ValueError):
            os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *arguments])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(kernel, number))
        while os.getppid() == parent and not select.select([server], [], [], 1)[0]:
            pass


if __name__ == "__main__":
    if sys.argv[1] == "server":
        sys.path[0] = str(Path(__file__).resolve().parents[1])
        serve(int(sys.argv[2]))
    else:
        ask(sys.argv[2], sys.argv[3:])
