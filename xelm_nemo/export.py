"""Write trained models in the formats of other libraries.

    python -m xelm_nemo.export source=DIR output=DIR

The source is a model, or a folder of several (`runs/<name>/experts/round0`); then each becomes a folder.
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Export what `source` holds into `output`."""
    from xelm_nemo import log
    from xelm_nemo.config.compose import compose
    from xelm_nemo.config.schema import ExportConfig
    from xelm_nemo.stages.export import export_source

    log.set_up()
    export_source(compose(sys.argv[1:], ExportConfig, "export"))


if __name__ == "__main__":
    sys.exit(command.run(main))
