"""A real Slurm on this machine: controller, munge and nodes, each in a mount and a hostname namespace of its own.

    with Cluster(folder) as cluster:            # as root, with Debian's slurmctld, slurmd, slurm-client and munge
        subprocess.run(["sbatch", ...], env=cluster.environment)

By hand: ``python tests/slurm/cluster.py up FOLDER`` prints the environment to export, ``... down FOLDER`` ends it.

Nothing is left behind: no daemon, no job, no file outside the folder. Every client is given a time to answer in.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "scancel", "unshare")
PATIENCE = 30.0  # seconds to start or to stop; a second is usual
CLIENT = 20.0  # seconds a Slurm client gets to answer

# What differs from Slurm's defaults, and why:
# cred_expire      a requeued job is held until its credential expires, 121 s by default
# config_overrides two nodes that pretend to have as many CPUs as the tests want
# KillWait, MinJobAge, *Timeout   waits of a real cluster, shortened; MinJobAge keeps ended jobs known
# MpiDefault       what the mpich of PyPI speaks
CONFIGURATION = """\
ClusterName=pynas
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=pmi2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.log
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=3
KillOnBadExit=0
ReturnToService=2
MinJobAge={remembers}
MaxArraySize=2001
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] CPUs={cpus} RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed here, and "root" where this process is not."""
    found = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    return found + ([] if os.geteuid() == 0 else ["root"])


class Cluster:
    """`nodes` of `cpus` pretended CPUs each, named n1, n2...; a context manager.

    `environment` is what a client's environment needs. `remembers`: seconds for which Slurm knows jobs that ended.
    """

    def __init__(self, folder: Path, *, nodes: int = 2, cpus: int = 8, remembers: int = 3600) -> None:
        self.folder = folder.absolute()
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.configuration = self.folder / "slurm.conf"
        self._cpus, self._remembers = cpus, remembers
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with what Slurm's clients need, and nothing of a job this process may be in."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PMI", "OMPI", "SBATCH"))
        }
        return {**inherited, **self.variables}

    @property
    def variables(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.configuration), "PATH": _path()}

    def start(self) -> None:
        """Start everything; returns when all nodes take jobs. RuntimeError, with the logs, where they do not."""
        for name in ("state", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        ports = _free_ports(1 + len(self.nodes))
        host = socket.gethostname().partition(".")[0]
        self.configuration.write_text(
            CONFIGURATION.format(
                host=host,
                folder=self.folder,
                controller_port=ports[0],
                nodes=f"n[1-{len(self.nodes)}]" if len(self.nodes) > 1 else "n1",
                first_port=ports[1],
                last_port=ports[-1],
                cpus=self._cpus,
                remembers=self._remembers,
            )
        )
        try:
            self._start_munge()
            self._daemon("slurmctld", ["slurmctld", "-D", "-c", "-i"])
            self.wait_for(lambda: "UP" in self.client("scontrol", "ping", check=False), "slurmctld answers")
            for node in self.nodes:
                self.start_node(node)
            self.wait_for(self.idle, "all nodes are idle")
        except BaseException:
            self.stop()
            raise

    def end_with(self, process: int) -> None:
        """Have another process stop the cluster once `process` is gone, which may be killed before it can."""
        self._watcher = subprocess.Popen(
            [sys.executable, __file__, "watch", str(self.folder), str(process)], start_new_session=True
        )

    def start_node(self, node: str) -> None:
        """Start a node's slurmd in namespaces of its own: a /dev/shm and a hostname that only this node sees."""
        script = f"mount -t tmpfs none /dev/shm && hostname {node} && exec slurmd -D -N {node}"
        self._daemon(f"slurmd-{node}", ["unshare", "--mount", "--uts", "sh", "-c", script])

    def kill_node(self, node: str) -> None:
        """What a power cut does: slurmd, its steps and all that they have started are gone at once."""
        daemon = self._pid(f"slurmd-{node}")
        if daemon is None:
            return
        room = os.readlink(f"/proc/{daemon}/ns/uts")
        for _ in range(3):  # what is killed may have just forked
            for process in _processes():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{process}/ns/uts") == room:
                        os.kill(process, signal.SIGKILL)

    def client(self, *command: str, check: bool = True, timeout: float = CLIENT) -> str:
        """Standard output of a Slurm client."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def idle(self) -> bool:
        states = self.client("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
        return sorted(line for line in states if line) == sorted(f"{node} idle" for node in self.nodes)

    def jobs(self) -> str:
        """What is in the queue: a line a job."""
        return self.client("squeue", "-h", "-o", "%i %T")

    def wait_for(self, condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {patience:.0f} s in vain: {what}\n{self._logs()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Cancel all jobs, end all daemons, wait until they are gone. Munge goes last: job steps hang without it."""
        if self._pid("slurmctld") is not None:
            with contextlib.suppress(Exception):
                self.client("scancel", "--user=root", check=False)
                self.client("scancel", "--user=root", "--signal=KILL", check=False)
                self.wait_for(lambda: not self.jobs().strip(), "the queue is empty", 15.0)
        for node in self.nodes:
            self.kill_node(node)
        self._end("slurmctld")
        self._end("munged")
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
        for pid in self._daemons():  # of a cluster that was started twice in this folder
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Cluster:
        self.start()
        self.end_with(os.getpid())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        socket_file = self.folder / "munge.socket"
        command = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_file}"]
        command += [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._daemon("munged", command)
        self.wait_for(socket_file.exists, "munge listens")

    def _daemon(self, name: str, command: list[str]) -> None:
        with open(self.folder / "logs" / f"{name}.txt", "ab") as output:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        (self.folder / f"{name}.started").write_text(str(process.pid))

    def _pid(self, name: str) -> int | None:
        file = self.folder / f"{name}.started"
        pid = int(file.read_text()) if file.exists() else None
        return pid if pid is not None and alive(pid) else None

    def _end(self, name: str) -> None:
        if (pid := self._pid(name)) is None:
            return
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, PATIENCE)):
            with contextlib.suppress(OSError):
                os.kill(pid, number)
            deadline = time.monotonic() + patience
            while alive(pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            if not alive(pid):
                return

    def _daemons(self) -> list[int]:
        """Processes that name this cluster's configuration in their environment and are daemons of Slurm's or munge."""
        mark = f"SLURM_CONF={self.configuration}".encode()
        found = []
        for pid in _processes():
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                if name.startswith(("slurm", "munged")) and mark in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
        return found

    def _logs(self) -> str:
        parts = []
        for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("logs/*.txt")]):
            lines = path.read_text(errors="replace").splitlines()[-8:]
            parts += [f"--- {path.name}", *lines]
        return "\n".join(parts)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not, which whoever adopts orphans need not reap."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    if state == "Z":
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
        return False
    return True


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _path() -> str:
    """The programs of this Python's environment first (mpiexec, pynas), and where Debian keeps daemons last."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    """Ports in a row that nobody listens on, below those that the system hands out by itself."""
    start = 17_000 + os.getpid() * 7 % 12_000  # test workers of neighbouring ids must not meet
    for first in range(start, 32_000, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                listener = stack.enter_context(socket.socket())
                listener.bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise RuntimeError("no free ports")


def describe(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}='{value}'" for name, value in variables.items())


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[0] not in ("up", "down", "watch"):
        sys.exit(f"usage: {sys.argv[0]} up|down FOLDER")
    cluster = Cluster(Path(arguments[1]))
    if arguments[0] == "watch":
        while alive(int(arguments[2])):
            time.sleep(0.5)
        cluster.stop()
    elif arguments[0] == "up":
        if lacking := missing():
            sys.exit(f"not here: {', '.join(lacking)}")
        cluster.start()
        print(describe(cluster.variables))
    else:
        cluster.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
