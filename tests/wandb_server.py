"""A W&B server for tests: loopback only, standard library only; the real client talks to it.

It answers what the client asks while it logs runs, uploads offline ones (`wandb sync`) and saves a report, and keeps
what arrives. A GraphQL operation that it doesn't know gets an error, as an old server would give.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 2 + "00000000"
"""A key that looks like one (40 hexadecimal digits) and opens nothing."""
ENTITY = "tester"


@dataclass
class Run:
    """What arrived of one run."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    complete: bool = False

    def values(self, scalar: str) -> list[Any]:
        """Return a scalar's values in the order they were logged."""
        return [row[scalar] for row in self.history if scalar in row]


class Server(ThreadingHTTPServer):
    """The server, in a thread of its own for the length of a `with` block.

    Args:
        refused: name of a GraphQL operation that is answered as if the key had no right to it.
    """

    daemon_threads = True

    def __init__(self, refused: str | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.refused = refused
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests = 0
        self.operations: list[str] = []
        self.projects: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, Run] = {}
        self.reports: list[dict[str, Any]] = []

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error of ours, not a client that ended and left its connections."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def project(self, name: str) -> dict[str, Any]:
        """Return a project, made if there is none of this name."""
        made = {"id": f"id-{name}", "internalId": "7", "name": name, "createdAt": "2026-01-01T00:00:00Z", "user": None,
                "isBenchmark": False, "entityName": ENTITY, "entity": {"id": "e", "name": ENTITY}}  # fmt: skip
        return self.projects.setdefault(name, made)

    def execute(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL operation."""
        self.operations.append(operation)
        if operation == self.refused:
            raise PermissionError("permission denied")
        match operation:
            case "Viewer":
                return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "teams": {"edges": []}}}
            case "GetDefaultEntity":
                return {"viewer": {"id": "u", "entity": ENTITY}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "OrganizationCoreWeaveOrganizationID":
                return {"entity": {"organization": None}}
            case "UpsertBucket":
                run = self.runs.setdefault(given["name"], Run(given["displayName"]))
                run.config |= {key: entry["value"] for key, entry in json.loads(given["config"] or "{}").items()}
                bucket = {"id": given["name"], "name": given["name"], "displayName": run.name, "historyLineCount": 0}
                project = self.project(given["project"])
                return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": True}}
            case "CreateRunFiles":
                self.runs[given["run"]].files |= set(given["files"])
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
            case "ProjectInternalId":
                return {"project": self.projects.get(given["projectName"])}
            case "GetProjects":
                page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
                edges = [{"node": project} for project in self.projects.values()]
                return {"models": {"pageInfo": page, "edges": edges}}
            case "upsertView":
                self.reports.append(given)
                project = self.project(given["projectName"])
                return {"upsertView": {"view": given | {"id": "VmlldzoxMjM=", "project": project}, "inserted": True}}
        raise LookupError(f"this server does not know {operation}")

    def stream(self, run: Run, content: dict[str, Any]) -> None:
        """Take a part of a run's stream: lines of JSON, beside the console's output."""
        lines = {name: part["content"] for name, part in content.get("files", {}).items()}
        run.history += map(json.loads, lines.get("wandb-history.jsonl", []))
        for line in lines.get("wandb-summary.json", []):
            run.summary |= json.loads(line)
        run.complete |= content.get("complete", False)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer GraphQL, take streams, and let telemetry pass."""
        body = self.body()
        stream = re.fullmatch(r"/files/.+/(\w+)/file_stream", self.path)
        if stream:
            self.server.stream(self.server.runs[stream[1]], json.loads(body))
        elif self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"\b(?:query|mutation)\s+(\w+)", asked["query"])
            try:
                data = self.server.execute(operation[1] if operation else "?", asked.get("variables") or {})
                return self.answer({"data": data})
            except PermissionError as error:
                return self.answer({"errors": [{"message": str(error)}]}, status=403)
            except LookupError as error:
                return self.answer({"errors": [{"message": str(error)}]})
        self.answer({})

    def do_PUT(self) -> None:
        """Take a file."""
        self.body()
        self.answer({})

    def body(self) -> bytes:
        """Return what was sent."""
        self.server.requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""
