"""Before a run: whether what it reads is there, and what it would do."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xelm_nemo.checkpoint.architectures import read_shape
from xelm_nemo.checkpoint.config import SeedModelConfig
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.metaseq import read_metaseq_shape
from xelm_nemo.checkpoint.nemo_context import read_context
from xelm_nemo.config.compose import to_yaml
from xelm_nemo.config.values import FINISHING_STAGES
from xelm_nemo.corpus.raw import list_raw
from xelm_nemo.corpus.tokenizer import has_tokenizer
from xelm_nemo.errors import ArtifactError, CheckpointError, ConfigError, CorpusError
from xelm_nemo.model.documents import mask_problem
from xelm_nemo.model.layers import NO_FP8_HERE, has_fp8
from xelm_nemo.stages import tasks
from xelm_nemo.stages.jobs import UPCYCLED, expert_job
from xelm_nemo.stages.memory import memory_lines
from xelm_nemo.stages.models import models_table
from xelm_nemo.stages.rounds import check_base
from xelm_nemo.stages.rows import models
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.shard import tokenizer_source
from xelm_nemo.stages.stage import Stage

_HELP = {"-h", "--help"}


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether a command is asked how to call it."""
    return not _HELP.isdisjoint(arguments)


def show_help(text: str) -> None:
    """Print how to call a command."""
    Console().print(text.strip(), markup=False, highlight=False, soft_wrap=True)


def check_places(run: Run, stages: Sequence[Stage]) -> None:
    """See that what the stages read is there, before anything is written.

    Raises:
        ConfigError: one line with every place that cannot be read and how to set it.
    """
    names = {stage.name for stage in stages}
    check_base(run)
    problems = [*_corpus(run, names), *_assignment(run), *_experts(run, names), *_machine(run, names)]
    problems += tasks.problems(run) if "evaluate" in names else []
    problems += _sources(run, names, doubt=bool(problems))
    # Last, for what the run's own models are called is known only where its sources can be read.
    problems += _further_models(run) if "evaluate" in names and not problems else []
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def show_plan(run: Run, stages: Sequence[Stage]) -> None:
    """Print the resolved configuration, the stages with their state, the models, and the memory they take."""
    console = Console()
    console.print(to_yaml(run.config).rstrip(), markup=False, highlight=False)
    console.print(f"\nrun folder: {run.folder}", highlight=False)
    table = Table("stage", "state")
    for stage in stages:
        table.add_row(stage.name, "up to date" if stage.is_current(run) else "to do")
    console.print(table)
    console.print(models_table(run))
    for line in memory_lines(run):
        console.print(line, highlight=False, soft_wrap=True)


def _corpus(run: Run, stages: Collection[str]) -> list[str]:
    """The splits of a user's corpus, each read up to its first document."""
    path, raw = run.config.corpus.path, run.config.corpus.raw
    if path is None:
        return [] if raw is None else _raw(Path(raw), run.config.corpus.languages)
    splits = [run.split_name("train"), run.split_name("valid")]
    if "evaluate" in stages:
        splits += run.config.evaluation.subsets or [run.split_name("test")]
    missing = [str(run.corpus / split) for split in splits if not (run.corpus / split).is_dir()]
    if missing:
        return [
            f"corpus.path={path!r} has no {' and no '.join(missing)}: set corpus.path=DIR to a "
            f"folder of {{{','.join(splits)}}}/<shard>/*.jsonl, or corpus=udhr to try the shipped text"
        ]
    lost = [name for name in run.config.clustering.fit_shards or [] if not (run.corpus / name).is_dir()]
    problems = [problem for split in splits if (problem := _unreadable(run, split))]
    if lost:
        problems.append(f"clustering.fit_on names {lost}, and {path} has no such folders; name shards of it")
    return problems


def _machine(run: Run, stages: Collection[str]) -> list[str]:
    """What training wants of this machine and does not find, if it is to be here."""
    if run.config.launch.name != "local" or "train" not in stages:
        return []
    training = run.config.training
    lacks_fp8 = run.config.precision.fp8.is_used and not has_fp8()
    masked = mask_problem(deterministic=training.deterministic) if training.document_mask else None
    return [problem for problem in (NO_FP8_HERE if lacks_fp8 else None, masked) if problem]


def _raw(folder: Path, languages: list[str] | None) -> list[str]:
    try:
        list_raw(folder, languages)
    except CorpusError as error:
        return [str(error).removesuffix(".")]
    return []


def _assignment(run: Run) -> list[str]:
    given = run.config.clustering.assignment
    if given is None or Path(given).is_dir():
        return []
    return [f"clustering.assignment={given!r} is no folder: set it to one of <split>/<shard>/<file>.jsonl"]


def _unreadable(run: Run, split: str) -> str | None:
    try:
        first = next(run.subset(split), None)
    except CorpusError as error:
        return str(error).removesuffix(".")
    return None if first else f"{run.corpus / split} holds no document; put lines into its .jsonl files"


def _experts(run: Run, stages: Collection[str]) -> list[str]:
    """Experts that a stage after training needs and nobody trains."""
    may_lack = {"evaluate"} if run.config.evaluation.allow_missing else set()
    after = [stage for stage in FINISHING_STAGES if stage in stages and stage not in may_lack]
    clusters = set(run.config.own_clusters) - set(run.config.train_clusters)
    missing = [k for k in sorted(clusters) if not expert_job(run, k).model_folder.is_dir()]
    if not after or not missing:
        return []
    return [
        f"training.train_clusters={run.config.train_clusters} leaves out experts {missing}, which are not "
        f"finished and which {' and '.join(after)} need: set training.train_clusters=null, or train with "
        "finish_with=[] for now"
    ]


def _further_models(run: Run) -> list[str]:
    """What `evaluation.models` names that cannot be evaluated beside the run's own."""
    if not run.config.evaluation.models:
        return []
    experts = {f"expert{cluster}" for cluster in range(run.config.clustering.num_clusters)}
    # A finished set's experts are among its models, and the names of baselines are kept for them.
    own, problems = experts | {job.name for job in models(run)} | {"dense", UPCYCLED}, []
    for name, folder in run.config.evaluation.models.items():
        if name in own or name.startswith("ensemble"):
            problems.append(f"evaluation.models.{name} has the name of a model of the run; give it another")
        try:
            load_facts(Path(folder))
        except ArtifactError as error:
            problems.append(f"evaluation.models.{name}={folder!r}: {str(error).removesuffix('.')}")
    return problems


def _sources(run: Run, stages: Collection[str], *, doubt: bool) -> list[str]:
    """The places of seed model and tokenizer; a possible hub id is a problem only in doubt."""
    config = run.config
    if run.base is not None:
        return []
    seed = config.seed_model.path if config.seed_model.source == "hf" else None
    own = config.tokenizer.path
    reads = [("branch", "seed_model.path", seed, _model_problem)]
    problems: list[str | None] = [*_checkpoint_problems(config.seed_model)] if "branch" in stages else []
    words = own if problems else tokenizer_source(run)
    reads += [("shard", "tokenizer.path" if own else "seed_model.path", words, _tokenizer_problem)]
    problems += [
        _source_problem(key, path, inspect, doubt)
        for stage, key, path, inspect in reads
        if stage in stages and path is not None
    ]
    return [problem for problem in dict.fromkeys(problems) if problem]


def _checkpoint_problems(seed_model: SeedModelConfig) -> list[str]:
    readers = {"metaseq": read_metaseq_shape, "nemo": read_context, "model": load_facts}
    if seed_model.source not in readers:
        return []
    try:
        readers[seed_model.source](Path(str(seed_model.path)))
    except (CheckpointError, ArtifactError) as error:
        return [str(error).removesuffix(".")]
    return []


def _source_problem(
    key: str, path: str, inspect: Callable[[str, Path], str | None], doubt: bool
) -> str | None:
    if Path(path).is_dir():
        return inspect(key, Path(path))
    if Path(path).exists() or doubt or not _may_be_hub_id(path):
        return f"{key}={path!r} is no folder here: set it to a Hugging Face folder or a hub id"
    return None


def _model_problem(key: str, folder: Path) -> str | None:
    try:
        read_shape(folder)
    except CheckpointError as error:
        return str(error).removesuffix(".")
    except ArtifactError:
        return f"{key}={str(folder)!r} has no config.json that can be read: set it to the folder of a model"
    return None


def _tokenizer_problem(key: str, folder: Path) -> str | None:
    said = f"{key}={str(folder)!r} has no tokenizer: set tokenizer.path=DIR to a folder that has one"
    return None if has_tokenizer(folder) else said


def _may_be_hub_id(path: str) -> bool:
    """`owner/name` or `name`, which only the hub can tell from a folder that is not there."""
    return not path.startswith((".", "/", "~")) and path.count("/") <= 1
