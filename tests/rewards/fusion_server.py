"""A local server with SandboxFusion's ``POST /run_code``, which runs what it is sent in our own sandbox.

Fields and statuses as in bytedance/SandboxFusion, sandbox/server/sandbox_api.py and sandbox/runners/types.py. `fault`
makes it fail the way a server fails.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel, ValidationError

from rewards.programs import _COMPILERS
from rewards.sandbox import CaseResult, Job, Limits, Sandbox


class RunCodeRequest(BaseModel):
    compile_timeout: float = 10
    run_timeout: float = 10
    memory_limit_MB: int = -1
    code: str
    stdin: str | None = None
    language: Literal["python", "cpp", "nodejs", "java"]


class FusionServer:
    def __init__(self) -> None:
        self.fault: str | None = None
        self.faults_left = 0
        self.bodies: list[str] = []
        self.sandbox = Sandbox(Limits(wall_seconds=10, memory_mb=1024))
        self.sandbox.report()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.sandbox.close()

    def fail(self, fault: str, times: int = 1000) -> None:
        self.fault, self.faults_left = fault, times

    def heal(self) -> None:
        self.fault = None

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # the handler's own self is another
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.bodies.append(body.decode())
                if self.path != "/run_code":
                    return self._reply(404, {"detail": "Not Found"})
                if server.fault is not None and server.faults_left > 0:
                    server.faults_left -= 1
                    return self._fail(server.fault)
                try:
                    request = RunCodeRequest.model_validate_json(body)
                except ValidationError as error:
                    return self._reply(422, {"detail": str(error)})
                return self._reply(200, server.run(request))

            def _fail(self, fault: str) -> None:
                result = {"status": "Finished", "execution_time": 0.1, "return_code": 0, "stdout": "", "stderr": ""}
                whole = {"status": "Success", "message": "", "compile_result": None, "run_result": result, "files": {}}
                if fault == "status 500":
                    self._reply(500, {"detail": "Internal Server Error"})
                elif fault == "sandbox error":
                    self._reply(200, whole | {"status": "SandboxError", "message": "no space left", "run_result": None})
                elif fault == "no result":
                    self._reply(200, whole | {"run_result": None})
                elif fault == "no output":
                    self._reply(200, whole | {"run_result": result | {"stdout": None}})
                elif fault == "no JSON":
                    self._write(200, b"<html>Bad Gateway</html>")
                elif fault == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"status"')
                elif fault == "silence":
                    time.sleep(3)
                self.close_connection = True

            def _reply(self, status: int, message: dict[str, Any]) -> None:
                self._write(status, json.dumps(message).encode())

            def _write(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

    def run(self, request: RunCodeRequest) -> dict[str, Any]:
        stdin = (request.stdin or "").encode()
        memory = request.memory_limit_MB if request.memory_limit_MB > 0 else 1024
        limits = Limits(cpu_seconds=60, wall_seconds=request.run_timeout, memory_mb=memory, output_bytes=2 << 20)
        compiled = None
        if request.language == "python":
            result = self.sandbox.run(Job({"mode": "script", "code": request.code}, stdin), limits)
        else:
            name, commands = _COMPILERS["cpp"]
            payload = {"mode": "compile", "code": request.code, "file_name": name, "command": commands[0]}
            built = self.sandbox.run(Job(payload), Limits(cpu_seconds=20, wall_seconds=request.compile_timeout))
            message = built.messages[0]
            compiled = _told(built, str(message.get("message", "")))
            if message["kind"] != "program":
                return _response("Failed", compiled, None)
            binary = b"".join(bytes.fromhex(part["part"]) for part in built.messages)
            result = self.sandbox.run(Job({"mode": "exec"}, stdin, binary), limits)
        said = ""
        if result.messages:  # our sandbox compiles apart; an interpreter says it on standard error
            said = f'  File "/tmp/tmp.py", line 1\n{result.messages[0]["message"]}\n'
        ran = _told(result, said)
        is_well = ran["status"] == "Finished" and ran["return_code"] == 0
        return _response("Success" if is_well else "Failed", compiled, ran)


def _response(status: str, compiled: Any, ran: Any) -> dict[str, Any]:
    return {"status": status, "message": "", "compile_result": compiled, "run_result": ran, "executor_pod_name": None,
            "files": {}}  # fmt: skip


def _told(result: CaseResult, said: str) -> dict[str, Any]:
    is_late = result.killed == "wall"
    stdout, stderr = (stream[: 1 << 20].decode("utf-8", "replace") for stream in (result.stdout, result.stderr))
    return {
        "status": "TimeLimitExceeded" if is_late else "Finished",
        "execution_time": result.wall,
        "return_code": None if is_late else result.exit,
        "stdout": stdout,
        "stderr": stderr + said,
    }
