"""Serve the graphs of a folder with circuit-tracer's front end, until standard input ends.

It runs in circuit-tracer's environment, and prints the port.
"""

import sys

from circuit_tracer.frontend.local_server import serve

server = serve(sys.argv[1], port=0)
print(server.httpd.server_address[1], flush=True)
sys.stdin.read()
server.stop()
