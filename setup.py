"""Build and installation of xelm_nemo; exact versions of what it needs are in constraints.txt."""

import ast
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

ROOT = Path(__file__).resolve().parent

# Written out: find_packages() would also take folders with generic names, such as tests and configs.
PACKAGES = [
    "xelm_nemo",
    "xelm_nemo.bench",
    "xelm_nemo.checkpoint",
    "xelm_nemo.clustering",
    "xelm_nemo.config",
    "xelm_nemo.corpus",
    "xelm_nemo.ensemble",
    "xelm_nemo.evaluation",
    "xelm_nemo.expert",
    "xelm_nemo.generation",
    "xelm_nemo.launch",
    "xelm_nemo.merge",
    "xelm_nemo.model",
    "xelm_nemo.nemo",
    "xelm_nemo.rounds",
    "xelm_nemo.router",
    "xelm_nemo.shards",
    "xelm_nemo.simulation",
    "xelm_nemo.stages",
    "xelm_kernels",
    "xelm_configs",
]
# The folders keep short names and have no __init__.py: a package called `kernels` at the root would
# hide the Hugging Face package of that name from transformers.
PACKAGE_DIR = {"xelm_kernels": "kernels", "xelm_configs": "configs"}
PACKAGE_DATA = {
    "xelm_nemo": ["py.typed", "_csrc.pyi", "data/**"],
    "xelm_configs": ["*.yaml", "*/*.yaml"],
}

REQUIREMENTS = [
    "backports.zstd>=1.0",  # the standard library has it from Python 3.14 on
    "hydra-core>=1.3.2,<1.4",
    "matplotlib>=3.9",
    "megatron-core>=0.15.3,<0.16",  # the newest line that NeMo 2.7.3 works with
    "numpy>=1.26,<2",  # megatron-core 0.15 needs the 1.x API
    "omegaconf>=2.3,<2.4",
    "psutil>=5.9",  # Megatron's checkpoint writer asks for it without saying so
    "rich>=13",
    "safetensors>=0.4.5",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "sentencepiece>=0.2",
    "stopwordsiso>=0.7",
    "submitit>=1.5.2",
    "tensorboard>=2.18",
    "threadpoolctl>=3.1",
    "torch>=2.6",
    "transformers>=4.57,<5",
    "triton>=3.2; platform_system == 'Linux'",  # elsewhere the kernels' plain torch definitions run
]
# lm_eval 0.4.13 does not look for it yet; its later versions do.
ENTRY_POINTS = {"lm_eval.models": ["xelm = xelm_nemo.evaluation.harness:XelmLM"]}
EXTRAS = {
    "gpu": ["transformer-engine[pytorch]>=2.9"],
    # NeMo 2.7.3 leaves these open or out, and does not import with their newest versions.
    "nemo": [
        "nemo_toolkit[core]==2.7.3",
        "datasets",
        "einops",
        "nemo_run==0.11.1",
        "leptonai==0.26.7",
        "nvidia-modelopt==0.37.0",
        "nvidia-resiliency-ext<1",
        "pandas<3",
        "pyarrow<21",
        "tensorstore<0.1.72",
        "tiktoken",
        "transformers~=4.57",
    ],
    "typology": ["lang2vec>=1.1.2"],  # its data alone, for languages beyond the package's 68
    "eval": ["lm_eval>=0.4.13,<0.5"],
    "parquet": ["pyarrow<21"],
    "wandb": ["wandb"],
    "dev": [
        "codespell",
        "lm_eval[hf]>=0.4.13,<0.5",  # with its own model for Hugging Face folders, a peer in tests
        "mypy",
        "pre-commit",
        "pyarrow<21",
        "pybind11>=2.13",  # with setuptools: the tests build the extension without a network
        "pytest>=8",
        "pytest-timeout",
        "ruff",
        "setuptools>=70",
        "types-PyYAML",
    ],
}


def version() -> str:
    """The `__version__` of the package, read without importing it."""
    for node in ast.parse((ROOT / "xelm_nemo/__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise SystemExit("xelm_nemo/__init__.py: __version__ is missing; write __version__ = '<version>'.")


class BuildExtension(build_ext):
    """pybind11's build_ext that says in one line what the machine lacks, and never goes on without."""

    def build_extensions(self) -> None:
        """Compile, after a look for the compiler and Python's headers."""
        compiler = getattr(self.compiler, "compiler_cxx", None)  # a list of words; MSVC has none
        if compiler and shutil.which(compiler[0]) is None:
            raise SystemExit(
                f"CXX={compiler[0]!r} is not a program on PATH, and xelm_nemo._csrc is C++17; "
                "install a C++ compiler (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)."
            )
        header = Path(sysconfig.get_path("include"), "Python.h")
        if not header.is_file():
            package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
            raise SystemExit(
                f"{header} is missing, and xelm_nemo._csrc is compiled against it; install Python's "
                f"headers (Debian, Ubuntu: apt install {package})."
            )
        generated = Path(self.build_temp, "generated")
        subprocess.run([sys.executable, UNICODE_RANGES, generated / "unicode_ranges.h"], check=True)
        for extension in self.extensions:
            extension.include_dirs.append(str(generated))
        super().build_extensions()


UNICODE_RANGES = ROOT / "csrc" / "unicode_ranges.py"
EXTENSION = Pybind11Extension(
    "xelm_nemo._csrc",
    sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp")),
    depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").iterdir()),
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=["-O3", "-Wall", "-Wextra"],
)

setup(
    name="xelm_nemo",
    version=version(),
    description="Cross-lingual expert language models on Megatron: cluster, branch, train, mix, export",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    package_data=PACKAGE_DATA,
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points=ENTRY_POINTS,
    ext_modules=[EXTENSION],
    cmdclass={"build_ext": BuildExtension},
    zip_safe=False,
)
