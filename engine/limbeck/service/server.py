"""The server: a port, its services, the teachers' workers, and how all of it starts and stops."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from limbeck.errors import EXIT_OK, LimbeckError, Problem, Reason
from limbeck.hosting import sandbox
from limbeck.hosting.host import RunHost
from limbeck.hosting.workspace import Workspace
from limbeck.plugins import load_plugins
from limbeck.runs.stopping import EXIT_CODES
from limbeck.service.auth import Access, Tokens
from limbeck.service.config import ServeConfig, parse_address
from limbeck.service.gate import Gate
from limbeck.service.host import TeacherHost
from limbeck.service.metrics import Metrics
from limbeck.service.plugin_service import SERVICE as PLUGINS
from limbeck.service.plugin_service import PluginService
from limbeck.service.quotas import Clients
from limbeck.service.replay import Dataset
from limbeck.service.teacher_service import SERVICE as TEACHERS
from limbeck.service.teacher_service import TeacherService
from limbeck.service.training_service import SERVICE as TRAINING
from limbeck.service.training_service import TrainingService

logger = logging.getLogger(__name__)
GRACE = 30.0  # seconds that what is under way may take when the server stops
FLUSH = 0.5  # seconds for the last messages to leave

OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second server behind the first
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # clients may ask often whether a silent server is there
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),  # a client whose machine vanished is noticed within a minute
    ("grpc.keepalive_timeout_ms", 20_000),
)


class Server:
    """A server by its config. Belongs to one event loop."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises SERVER_INVALID with every problem."""
        problems = config.problems()
        self._config = config
        self._tokens: Tokens | None = None
        datasets: dict[str, Dataset] = {}
        if config.tokens is not None:
            with _noting(problems):
                self._tokens = Tokens(config.tokens)
        for name, folder in config.signals.items():
            with _noting(problems):
                datasets[name] = Dataset(name, folder)
        if problems:
            raise LimbeckError(Reason.SERVER_INVALID, problems=problems)
        self.metrics = Metrics()
        self.hosts = {name: TeacherHost(name, bound, log=logger) for name, bound in config.teachers.items()}
        self.metrics.watch(lambda: self.hosts)
        access, clients = Access(self._tokens), Clients(config.limits)
        self.service = TeacherService(config, self.hosts, datasets, access, clients, self.metrics)
        self.plugins = PluginService(load_plugins())
        self.runs = _runs(config)
        self.training: TrainingService | None = None
        if self.runs is not None:
            self.training = TrainingService(self.runs, config.timing, access, clients, self.metrics)
        self._health = health.aio.HealthServicer()
        self._gate = Gate(access, self.metrics)
        self._server: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self.address = ""

    async def start(self) -> str:
        """Listen, and start the teachers and the runs; returns HOST:PORT at once.

        Raises SERVER_INVALID for an address in use, and what keeps the runs from being taken up again.
        """
        await self._set_health(False)
        self._server = grpc.aio.server(interceptors=[self._gate], options=OPTIONS)
        self._server.add_generic_rpc_handlers(tuple(one.handlers() for one in self._services()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [*self._names(), health.SERVICE_NAME]
        if self._config.address.loopback or self._tokens is not None:
            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)
        self.address = self._bind()
        if self._config.metrics is not None:
            address = self.metrics.serve(parse_address(self._config.metrics, "--metrics"))
            logger.info("metrics at http://%s/metrics", address)
        if self.runs is not None:  # only now: a server that cannot listen touches no run
            await self.runs.start()
            if not sandbox.version():
                logger.warning("this kernel has no Landlock: what runs open is checked by its path alone")
        await self._server.start()
        logger.info("listening", extra={"address": self.address, "tls": self._config.tls})
        if not self._config.address.loopback and self._tokens is None and self._config.client_ca is None:
            logger.warning("whoever reaches the address may ask: there are no tokens and no --client-ca")
        self._tasks = [asyncio.create_task(host.start()) for host in self.hosts.values()]
        self._tasks.append(asyncio.create_task(self._watch()))
        return self.address

    async def stop(self, grace: float = GRACE) -> bool:
        """Drain: no new calls, those under way have `grace` seconds. Whether all of them ended by themselves."""
        if self._tasks:  # it has served
            logger.info("draining", extra={"calls": self.busy})
        await self._health.enter_graceful_shutdown()
        self.service.drain()
        self.plugins.calls.draining = True
        if self.training is not None:
            self.training.calls.draining = True
        runs = asyncio.create_task(self.runs.close(grace)) if self.runs is not None else None
        try:
            async with asyncio.timeout(grace):
                while self.busy:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pass
        drained = not self.busy
        if runs is not None:
            await asyncio.wait([runs])
            if (fault := runs.exception()) is not None:  # a full disk, say: the next server brings them to order
                logger.error("the runs could not be closed: %s", fault)
        self.service.end()
        if self._server is not None:
            await self._server.stop(FLUSH if self.busy else 0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(host.close() for host in self.hosts.values()))
        self.metrics.close()
        return drained

    @property
    def busy(self) -> int:
        """Calls under way."""
        others = [self.plugins.calls, *([self.training.calls] if self.training is not None else [])]
        return self.service.busy + sum(calls.under_way for calls in others)

    def _services(self) -> list[Any]:
        return [self.service, self.plugins, *([self.training] if self.training is not None else [])]

    def _names(self) -> list[str]:
        return [TEACHERS, PLUGINS, *([TRAINING] if self.training is not None else [])]

    def _bind(self) -> str:
        address = self._config.address
        try:
            if self._config.tls:
                port = self._server.add_secure_port(str(address), self._credentials())
            else:
                port = self._server.add_insecure_port(str(address))
        except RuntimeError:
            port = 0
        if not port:
            hint = "another program listens there, or the host is not this machine's; port 0 takes a free one"
            problem = Problem(f"cannot listen on {address}", field="--listen", hint=hint)
            raise LimbeckError(Reason.SERVER_INVALID, problems=[problem])
        return str(type(address)(address.host, port))

    def _credentials(self) -> Any:
        cert, key, ca = self._config.tls_cert, self._config.tls_key, self._config.client_ca
        assert cert is not None, "checked"
        assert key is not None, "checked"
        return grpc.ssl_server_credentials(
            [(key.read_bytes(), cert.read_bytes())], ca.read_bytes() if ca else None, require_client_auth=ca is not None
        )

    async def _watch(self) -> None:
        """Say whether all teachers answer, whenever that changes."""
        before: Mapping[str, str] = {}
        while True:
            states = {name: host.state for name, host in self.hosts.items()}
            if states != before or not states:
                await self._set_health(all(state == "ready" for state in states.values()))
            before = states
            await asyncio.sleep(self._config.timing.poll)

    async def _set_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", TEACHERS):
            await self._health.set(service, status)
        for service in self._names()[1:]:  # these need no teacher
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)


def _runs(config: ServeConfig) -> RunHost | None:
    """What keeps the runs, where there are any. Raises SERVER_INVALID for a workspace that cannot be made."""
    if config.workspace is None:
        return None
    try:
        config.workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = Problem(f"cannot be made: {error.strerror}", file=str(config.workspace), field="--workspace")
        raise LimbeckError(Reason.SERVER_INVALID, problems=[problem]) from error
    return RunHost(Workspace(config.workspace, config.read), config.runs, log=logger)


@contextmanager
def _noting(problems: list[Problem]) -> Iterator[None]:
    """Gather the problems of what is raised inside."""
    try:
        yield
    except LimbeckError as error:
        problems += error.problems


async def serve(config: ServeConfig, started: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code: 0 where all calls ended by themselves.

    `started` is given the address. A second signal ends the process at once; the workers see that and end too.
    """
    server = Server(config)
    signalled: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(name: str) -> None:
        if signalled.done():
            os._exit(EXIT_CODES[name])
        signalled.set_result(name)

    for name in EXIT_CODES:
        asyncio.get_running_loop().add_signal_handler(signal.Signals[name], hear, name)
    try:
        started(await server.start())
        name = await signalled
    except BaseException:
        await server.stop(0.0)
        raise
    drained = await server.stop()
    logger.info("stopped", extra={"signal": name, "drained": drained})
    return EXIT_OK if drained else EXIT_CODES[name]
