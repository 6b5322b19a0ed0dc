"""How each server is started on a model."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent

CONTEXT_TOKENS = 4096
MAX_SEQUENCES = 32
LLAMA_CONTEXT_TOKENS = MAX_SEQUENCES * 1536
PAGES_GIB = 4

SERVED_NAME = "m"

OFFLINE = {"HF_HUB_OFFLINE": "1"}

KVASIR = "import sys; from kvasir.cli.main import main; sys.exit(main())"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """model: a folder in Hugging Face's format; its GGUF file lies beside it. scratch: for files of a run."""

    model: Path
    port: int
    threads: int
    scratch: Path

    @property
    def gguf(self) -> Path:
        return self.model.with_name(f"{self.model.name}-bf16.gguf")

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of one token, in bfloat16."""
        config = json.loads((self.model / "config.json").read_text())
        return 4 * int(config["num_hidden_layers"]) * int(config["num_key_value_heads"]) * int(config["head_dim"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """program: what has to be there. ready_path: answers 200 when requests may come.

    page_bytes: of the keys and values that lie in physical memory when it is ready: most only touch what they use.
    shares_pages: these lie in shared memory, and what is mapped of it is looked up.
    served_name: what requests call the model. ignores_eos: whether it knows the field; to one that does not, answers
    are as long all the same if the model never says its end, as those of `make_models.py`.
    """

    name: str
    program: Path
    command: Callable[[Launch], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = "/health"
    page_bytes: Callable[[Launch], int] = lambda launch: 0
    shares_pages: bool = False
    served_name: Callable[[Launch], str] = lambda launch: SERVED_NAME
    ignores_eos: bool = True
    needs_gguf: bool = False

    def missing(self, launch: Launch) -> Path | None:
        """The first file without which it can't run."""
        needed = [self.program, *([launch.gguf] if self.needs_gguf else [])]
        return next((path for path in needed if not path.exists()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Where the peers are. The virtual environments are folders, llama_server is the program."""

    transformers_venv: Path
    vllm_venv: Path
    llama_server: Path


def all_peers(programs: Programs) -> list[Peer]:
    """This server first."""
    return [kvasir(), _static(programs), _transformers_serve(programs), _llama_server(programs), _vllm(programs)]


def other_peer(name: str, command: str) -> Peer:
    """command: one line, in which {port}, {model} and {threads} stand for these."""
    words = command.split()

    def filled(launch: Launch) -> list[str]:
        return [word.format(port=launch.port, model=launch.model, threads=launch.threads) for word in words]

    program = next(
        (Path(folder) / words[0] for folder in os.get_exec_path() if (Path(folder) / words[0]).exists()), None
    )
    return Peer(name=name, program=program or Path(words[0]), command=filled)


def _address(launch: Launch) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(launch.port)]


def kvasir() -> Peer:
    """This server."""

    def command(launch: Launch) -> list[str]:
        config = launch.scratch / "kvasir.yaml"
        config.write_text(f"engine: {{num_threads: {launch.threads}, max_num_seqs: {MAX_SEQUENCES}}}\n")
        more = ["--config", str(config), "--mixed", "--dtype", "bfloat16", "--device", "cpu"]
        more += ["--max-model-len", str(CONTEXT_TOKENS), "--kv-cache-memory-bytes", f"{PAGES_GIB}GiB"]
        return [sys.executable, "-c", KVASIR, "serve", str(launch.model), "--served-model-name", SERVED_NAME, *more,
                *_address(launch)]  # fmt: skip

    return Peer(name="kvasir", program=Path(sys.executable), command=command, shares_pages=True)


def _static(programs: Programs) -> Peer:
    python = programs.transformers_venv / "bin" / "python"

    def command(launch: Launch) -> list[str]:
        sizes = ["--threads", str(launch.threads), "--batch-size", str(MAX_SEQUENCES)]
        return [str(python), str(HERE / "static_batch.py"), str(launch.model), "--port", str(launch.port), *sizes]

    return Peer(name="transformers static", program=python, command=command)


def _transformers_serve(programs: Programs) -> Peer:
    program = programs.transformers_venv / "bin" / "transformers"

    def command(launch: Launch) -> list[str]:
        more = ["--continuous-batching", "--device", "cpu"]
        return [str(program), "serve", str(launch.model), *more, *_address(launch)]

    return Peer(
        name="transformers serve",
        program=program,
        command=command,
        environment=OFFLINE,
        served_name=lambda launch: str(launch.model),
        ignores_eos=False,
    )


def _llama_server(programs: Programs) -> Peer:
    def command(launch: Launch) -> list[str]:
        threads = ["-t", str(launch.threads), "-tb", str(launch.threads)]
        # Its context is divided among the places.
        places = ["-np", str(MAX_SEQUENCES), "-no-kvu", "-c", str(LLAMA_CONTEXT_TOKENS)]
        return [str(programs.llama_server), "-m", str(launch.gguf), "-a", SERVED_NAME, *threads, *places,
                *_address(launch)]  # fmt: skip

    return Peer(
        name="llama-server",
        program=programs.llama_server,
        command=command,
        page_bytes=lambda launch: LLAMA_CONTEXT_TOKENS * launch.token_bytes,
        needs_gguf=True,
    )


def _vllm(programs: Programs) -> Peer:
    program = programs.vllm_venv / "bin" / "vllm"
    libraries = [programs.vllm_venv / "lib" / name for name in ("libtcmalloc_minimal.so.4", "libiomp5.so")]
    preloaded = [str(library) for library in libraries if library.exists()]

    def command(launch: Launch) -> list[str]:
        cores = f"0-{launch.threads - 1}"
        more = ["--dtype", "bfloat16", "--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", str(MAX_SEQUENCES)]
        # Its `auto` would leave one core to the API.
        return ["env", f"VLLM_CPU_OMP_THREADS_BIND={cores}", str(program), "serve", str(launch.model),
                "--served-model-name", SERVED_NAME, *more, *_address(launch)]  # fmt: skip

    environment = {"VLLM_CPU_KVCACHE_SPACE": str(PAGES_GIB), "LD_PRELOAD": ":".join(preloaded), **OFFLINE}
    return Peer(
        name="vllm-cpu",
        program=program,
        command=command,
        environment=environment,
        page_bytes=lambda launch: PAGES_GIB * 2**30,
    )
