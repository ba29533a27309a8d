"""What a batch script calls: a rank of a job, and the end of one.

srun python -m xelm_nemo.launch run MODULE FOLDER
python -m xelm_nemo.launch ended FOLDER EXIT_CODE MAX_CRASHES
"""

import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Do one of the two."""
    from xelm_nemo.errors import ConfigError
    from xelm_nemo.launch import ended, signals, slurm

    match arguments:
        case ["run", module, folder]:
            slurm.run_job(module, [folder], folder, signals.DEFAULT)
        case ["ended", folder, code, max_crashes]:
            ended.see_off(Path(folder), int(code), int(max_crashes))
        case _:
            raise ConfigError(f"{' '.join(arguments)!r} is no call of this module. {__doc__}")


if __name__ == "__main__":
    from xelm_nemo import command

    sys.exit(command.run(lambda: main(sys.argv[1:])))
