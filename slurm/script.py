"""From a job and a site to the text of its batch script. Pure; only it and `allocation` write shell.

The script makes the run's directory and its `run.yaml`, numbers the attempt, starts the ranks in one srun, passes the
walltime's signal on to them, and requeues its job when they ask for that (exit code 75). It ends with the ranks' code.
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from slurm.site import Scheduler, Site
from slurm.spec import JobSpec, Resources, format_walltime

REQUEUE = 75
CONFIG_END = "END_OF_RUN_YAML"
STALE = 'for file in /dev/shm/mpich_shm_*; do grep -qsF "$file" /proc/[0-9]*/maps || rm -f "$file"; done'
"""Removes shared memory of MPICH that no process of the node maps."""
GREETING = (
    'say() { printf \'%s %s\\n\' "$(date +%FT%T)" "$*"; }',
    'say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST"',
)


def render(job: JobSpec, site: Site) -> str:
    """Return the sbatch script as text: same arguments, same bytes; touches no file.

    Raises:
        SiteError: the site has no scheduler or no such queue.
        SpecError: the site cannot hold the job.
    """
    scheduler = site.slurm()
    nodes = job.nodes(scheduler)
    parts = (
        [
            "#!/bin/bash -l",
            f"# {job.name}: {job.ranks} ranks, {nodes} node{'s' * (nodes > 1)} of {site.name}, by `isoflop render`.",
        ],
        list(_directives(job, scheduler)),
        _head(job),
        _environment(job, scheduler, nodes),
        _stage(job, scheduler) if job.archive else [],
        _attempt(job),
        _ranks(job, scheduler),
        _end(job),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _directives(job: JobSpec, scheduler: Scheduler) -> Iterator[str]:
    """Yield the #SBATCH lines; every value in them is one plain word, which spec and site have checked."""
    queue = scheduler.queue(job.queue)
    every = [
        *([f"--account={job.account}"] if job.account else []),
        *queue.options,
        *scheduler.sbatch,
        f"--time={format_walltime(job.granted_s(scheduler))}",
    ]
    once = [
        f"--job-name={job.name}",
        f"--signal=B:{scheduler.signal}@{scheduler.warn_s}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.out",
        "--export=NONE",
    ]
    for index, part in enumerate(job.components):
        sizes = [
            f"--nodes={part.nodes(scheduler)}",
            f"--ntasks={part.ranks}",
            f"--ntasks-per-node={_per_node(part, scheduler)}",
            f"--cpus-per-task={part.threads * scheduler.cpus_per_core}",
        ]
        if index:
            yield "#SBATCH hetjob"
        yield from (f"#SBATCH {option}" for option in [*([] if index else once), *every, *sizes])


def _head(job: JobSpec) -> list[str]:
    run = str(job.run_dir)
    return [
        *([f"cd -- {quote(str(job.directory))} || exit 2"] if job.directory else []),
        f"run={quote(run)}",
        f"python={quote(str(job.python))}",
        "umask 077",
        *GREETING,
    ]


def _environment(job: JobSpec, scheduler: Scheduler, nodes: int) -> list[str]:
    world = {"ISOFLOP_WORLD_SIZE": str(job.ranks)}  # each rank holds its MPI world against it
    return environment({**job.environment, **world}, scheduler, nodes)


def environment(own: dict[str, str], scheduler: Scheduler, nodes: int) -> list[str]:
    """Return the lines that load the site's modules and set its variables, then `own` ones."""
    many = scheduler.environment_many_nodes if nodes > 1 else {}
    variables = {**scheduler.environment, **many, **own}
    return [
        *(f"module load {quote(name)}" for name in scheduler.modules),
        *(f"export {name}={quote(value)}" for name, value in variables.items()),
        "case $python in */*) export PATH=${python%/*}:$PATH ;; esac",
    ]


def _stage(job: JobSpec, scheduler: Scheduler) -> list[str]:
    """Return the lines that unpack the environment on each node: thousands of ranks must not import over NFS."""
    [each] = _once_a_node(job, scheduler)
    return [
        "# The environment, to each node's own disk.",
        f'stage={quote(scheduler.stage_root)}/"$(id -un)"/isoflop-"$SLURM_JOB_ID"',
        f'{each} mkdir -p -- "$stage" || exit 1',
        f'sbcast --force -- {quote(str(job.archive))} "$stage/environment.tar" || exit 1',
        f'{each} tar -xf "$stage/environment.tar" -C "$stage" || exit 1',
        "python=$stage/bin/python",
        "export PATH=$stage/bin:$PATH",
    ]


def _once_a_node(job: JobSpec, scheduler: Scheduler) -> list[str]:
    """Return what goes before a command that is to run on every node: one srun for each component."""
    several = len(job.components) > 1
    return [
        f"srun --nodes={(nodes := part.nodes(scheduler))} --ntasks={nodes} --ntasks-per-node=1 --export=ALL"
        + (f" --het-group={index}" if several else "")
        for index, part in enumerate(job.components)
    ]


def _attempt(job: JobSpec) -> list[str]:
    return [
        "# The run's directory, its exact configuration, and the number of this attempt.",
        'mkdir -p -- "$run/checkpoints" || exit 2',
        'cat >"$run/.run.yaml.$SLURM_JOB_ID" <<\'' + _delimiter(job.config) + "' || exit 2",
        job.config.rstrip("\n"),
        _delimiter(job.config),
        'mv -- "$run/.run.yaml.$SLURM_JOB_ID" "$run/run.yaml" || exit 2',
        "attempt=1",
        'name() { printf \'%s/attempt-%03d.out\' "$run" "$attempt"; }',
        'while out=$(name); [ -e "$out" ]; do attempt=$((attempt + 1)); done',
        'exec 8>>"$out" 9>>"${out%.out}.err" || exit 2',
        "flock --nonblock 8  # held for as long as anyone can still write: the run is seen to be alive",
    ]


def _ranks(job: JobSpec, scheduler: Scheduler) -> list[str]:
    """Return the lines that start the ranks and wait for them, whatever signals come."""
    program = f'"$python" -m mpi4py -m {job.program} "$run" --attempt "$attempt"'
    several = len(job.components) > 1
    steps = [
        " ".join(map(quote, step_options(part, scheduler))) + (f" --het-group={index}" if several else "")
        for index, part in enumerate(job.components)
    ]
    srun = "srun " + " : ".join(f"{options} {program}" for options in steps)
    name = scheduler.signal
    return [
        "committed() { find \"$run/checkpoints\" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1; }",
        'if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then  # MPICH would take up what killed ranks of this job left',
        f"  stale={quote(STALE)}",
        *(f'  {each} bash -c "$stale"' for each in _once_a_node(job, scheduler)),
        "fi",
        "before=$(committed)",
        "warned=0 step= late=",
        "warn() {",
        "  warned=1 again=1",
        "  say 'the walltime is near'",
        f'  [ -z "$step" ] || kill -{name} "$step"',
        "  # Ranks that are deaf to it, as MPICH makes a program without a handler, are ended while there is time.",
        f'  {{ sleep {scheduler.warn_s * 2 // 3}; kill -TERM "$step"; }} 8>&- 9>&- &',
        "  late=$!",
        "}",
        f"trap warn {name}",
        'say "attempt $attempt starts: ${out%.out}.{out,err}"',
        f"{srun} >&8 2>&9 &",
        "step=$!",
        'again=1; while [ "$again" = 1 ]; do again=0; wait "$step"; code=$?; done  # a signal cuts a wait short',
        '[ -z "$late" ] || kill "$late" 2>/dev/null',
        "exec 8>&- 9>&-",
        "# The ranks' own word goes before srun's, which says 137 when one rank has ended the others.",
        'word=$(sed -n \'s/^{"code": \\([0-9]*\\),.*/\\1/p\' "${out%.out}.exit.json" 2>/dev/null)',
        "code=${word:-$code}",
        'say "attempt $attempt ended with code $code"',
    ]


def step_options(part: Resources, scheduler: Scheduler) -> list[str]:
    """Return srun's options for a step of such ranks."""
    gpus = scheduler.srun_gpus if part.on_gpus and scheduler.node_gpus else ()
    return [
        *("-N", str(part.nodes(scheduler)), "-n", str(part.ranks)),
        f"--ntasks-per-node={_per_node(part, scheduler)}",
        f"-c{part.threads * scheduler.cpus_per_core}",
        *scheduler.srun,
        *gpus,
        f"--export=ALL,OMP_NUM_THREADS={part.threads}",  # the job's own --export=NONE would reach the step, too
        "--kill-on-bad-exit=1",  # a rank that is lost ends the others; what they had to say is on disk by then
    ]


def _end(job: JobSpec) -> list[str]:
    """Return the lines that requeue the job when the ranks asked for it, or had no time to, and it gets on."""
    return [
        "# 75 asks for another attempt; ranks that had to be ended after the warning go on from their last checkpoint.",
        f'if [ "$code" -eq {REQUEUE} ] || {{ [ "$warned" = 1 ] && [ "$code" -gt 128 ]; }}; then',
        "  idle=0",
        '  if read -r owner count <"$run/restarts" && [ "$owner" = "$SLURM_JOB_ID" ]; then idle=$count; fi 2>/dev/null',
        '  if [ "$(committed)" != "$before" ]; then idle=0; else idle=$((idle + 1)); fi',
        f'  if [ "$idle" -gt {job.restarts_max} ]; then',
        f'    say "giving up: {job.restarts_max} restarts without a new checkpoint"',
        "  else",
        '    echo "$SLURM_JOB_ID $idle" >"$run/restarts"',
        '    say "requeueing the job"',
        '    scontrol requeue "$SLURM_JOB_ID" || say "the scheduler does not requeue it; submit it again"',
        "  fi",
        "fi",
        'exit "$code"',
    ]


def _per_node(part: Resources, scheduler: Scheduler) -> int:
    return min(part.ranks, part.ranks_per_node(scheduler))


def _delimiter(text: str) -> str:
    """Return a line that the text does not hold."""
    lines, number = set(text.splitlines()), 0
    while f"{CONFIG_END}{number or ''}" in lines:
        number += 1
    return f"{CONFIG_END}{number or ''}"
