"""A real SLURM on this machine: a controller and a few nodes that are daemons, in a folder of its own.

Debian's packages, no accounting (so no sacct), no cgroups, no systemd; it needs root. Nodes have more cores
and memory than the machine: what they hold is only counted.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
NODES, CPUS, MEM_MB, NODE_TIMEOUT = 4, 8, 16_000, 10
HOSTS = Path("/etc/hosts")


def missing():
    """What a machine lacks to run this; None when there is nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)}: run `apt-get install slurmctld slurmd slurm-client munge`"
    return None if os.geteuid() == 0 else "SLURM's daemons for a test want root"


class Cluster:
    """Controller and nodes; partitions `main`, and `high`, whose jobs take the place of main's."""

    def __init__(self, folder):
        self.folder, self.conf = folder, folder / "slurm.conf"
        self.environment = os.environ | {"SLURM_CONF": str(self.conf)}
        for name in ("log", "run", "state", *(f"spool/n{k}" for k in range(NODES))):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.conf.write_text(self.configuration())

    def configuration(self):
        host, folder, port = socket.gethostname().partition(".")[0], self.folder, free_ports(NODES + 1)
        lines = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={folder}/run/munge.socket",
            "CredType": "cred/munge",
            "SlurmctldPort": port,
            "SlurmctldPidFile": f"{folder}/run/slurmctld.pid",
            "SlurmdPidFile": f"{folder}/run/%n.pid",
            "SlurmdSpoolDir": f"{folder}/spool/%n",
            "StateSaveLocation": f"{folder}/state",
            "SlurmctldLogFile": f"{folder}/log/slurmctld.log",
            "SlurmdLogFile": f"{folder}/log/%n.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/linux",  # counts memory, as there are no cgroups
            "JobAcctGatherFrequency": "task=1",
            "JobAcctGatherParams": "OverMemoryKill",
            "AccountingStorageType": "accounting_storage/none",
            "MpiDefault": "none",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory,CR_LLN",  # jobs spread over the nodes
            "SlurmdParameters": "config_overrides",  # believe these numbers, not the machine's
            "ReturnToService": 2,
            "JobRequeue": 1,
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmctldParameters": "preempt_send_user_signal",
            "SlurmctldTimeout": 10,
            "SlurmdTimeout": NODE_TIMEOUT,
            "MinJobAge": 300,
            "KillWait": 5,
            "WaitTime": 0,
            "MessageTimeout": 10,
        }
        nodes = f"NodeName=n[0-{NODES - 1}] NodeHostname={host} NodeAddr=127.0.0.1"
        partition = "Nodes=ALL MaxTime=INFINITE DefMemPerCPU=100 State=UP"
        return "\n".join(
            [
                *(f"{key}={value}" for key, value in lines.items()),
                f"{nodes} Port=[{port + 1}-{port + NODES}] CPUs={CPUS} RealMemory={MEM_MB} State=UNKNOWN",
                f"PartitionName=main {partition} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60",
                f"PartitionName=high {partition} PriorityTier=10 PreemptMode=OFF\n",
            ]
        )

    def start(self):
        names = " ".join(f"n{k}" for k in range(NODES))
        if f" {names}" not in HOSTS.read_text():  # ranks on two nodes look each other up
            with HOSTS.open("a") as file:
                file.write(f"127.0.0.1 {names}\n")
        run, key = self.folder / "run", self.folder / "munge.key"
        self.call("munged", "--force", f"--key-file={key}", f"--socket={run}/munge.socket",
                  f"--pid-file={run}/munged.pid", f"--log-file={self.folder}/log/munged.log",
                  f"--seed-file={run}/munge.seed")  # fmt: skip
        self.start_controller()
        for k in range(NODES):
            self.start_node(f"n{k}")
        wait_for(lambda: self.idle_nodes() == NODES, 30, "the nodes do not come up")

    def stop(self):
        self.call("scancel", "--full", "--user=root", check=False)
        for name in (*(f"n{k}" for k in range(NODES)), "slurmctld", "munged"):
            self.kill(name, signal.SIGTERM)

    def start_controller(self):
        self.call("slurmctld", "-i")
        wait_for(lambda: "is UP" in self.call("scontrol", "ping", check=False), 20, "no controller")

    def start_node(self, name):
        self.call("slurmd", "-N", name)

    def kill(self, name, number=signal.SIGKILL):
        """End a daemon and wait until it has gone."""
        file = self.folder / "run" / f"{name}.pid"
        if not file.is_file():
            return
        pid = int(file.read_text())
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        wait_for(lambda: not is_running(pid), 20, f"{name} does not end")
        file.unlink(missing_ok=True)

    def kill_node(self, name):
        """Take a node away at one blow: its daemon, its jobs, and all their processes."""
        jobs = self.call("squeue", "-h", "-w", name, "-o", "%A").split()
        pid = int((self.folder / "run" / f"{name}.pid").read_text())
        found = [step for job in jobs for step in pids(f"^slurmstepd: \\[{job}\\.")]
        self.kill_all([pid, *(one for step in found for one in [step, *descendants(step)])])

    @staticmethod
    def kill_all(victims):
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def idle_nodes(self):
        shown = self.call("sinfo", "-h", "-p", "main", "-t", "idle,mix,alloc", "-o", "%D", check=False)
        return sum(int(count) for count in shown.split())

    def jobs(self):
        """Of every job the state and the reason that SLURM tells; none while it tells nothing."""
        words = ("-h", "-r", "-t", "all", "-o", "%i|%T|%r")
        shown = self.call("timeout", "3", "squeue", *words, check=False)
        return {job: (state, reason) for job, state, reason in (row.split("|") for row in shown.splitlines())}

    def call(self, *command, check=True):
        """Run one of SLURM's commands; what it says."""
        done = subprocess.run(
            [str(word) for word in command], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def pids(pattern):
    """The processes whose command line matches."""
    done = subprocess.run(["pgrep", "-f", "--", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def commands(pattern):
    """The command lines of processes that match."""
    done = subprocess.run(["pgrep", "-a", "-f", "--", pattern], capture_output=True, text=True, check=False)
    return [line.partition(" ")[2] for line in done.stdout.splitlines()]


def descendants(pid):
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    children = [int(child) for child in done.stdout.split()]
    return [one for child in children for one in [child, *descendants(child)]]


def is_running(pid):
    """Whether a process lives; one that is dead and that nobody has asked about does not."""
    return process_state(pid) != "Z"


def process_state(pid):
    """The letter of /proc: T is halted; Z is dead, also where there is nothing left of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def free_ports(count):
    """The first of some ports in a row that nobody listens on."""
    for start in range(26_800, 30_000, count):
        if all(is_free(port) for port in range(start, start + count)):
            return start
    raise AssertionError("no free ports")


def is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
