"""What a person reads when a server comes up: what it serves, and how to ask it."""

import ipaddress

from kvasir.cli.phases import Phases
from kvasir_protocol.config import ClusterConfig

QUESTION = "Who was Kvasir?"


def describe(config: ClusterConfig) -> str:
    """One line: the models, where they compute, and with which replicas."""
    models = ", ".join(f"{model.served_name} from {model.path}" for model in config.all_models)
    pools = " + ".join(f"{pool.replicas} {pool.name}" for pool in config.pools)
    engine = config.engine
    threads = f"{engine.num_threads} thread{'s' if engine.num_threads != 1 else ''} each"
    where = f"{engine.device}, {threads}" if engine.device == "cpu" else engine.device
    return f"serving {models} ({pools}; {where})"


def show_examples(phases: Phases, config: ClusterConfig, url: str) -> None:
    """Where it listens, and lines to paste."""
    is_open = not config.router.api_keys
    header = "" if is_open else " -H 'Authorization: Bearer YOUR_KEY'"
    key = "none" if is_open else "YOUR_KEY"
    name = config.model.served_name
    phases.say(
        f"""
listening on {url} (OpenAI's API below {url}/v1)

  kvasir chat --url {url}{"" if is_open else " --api-key YOUR_KEY"}

  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json'{header} \\
    -d '{{"model": "{name}", "stream": true, "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{key}")
  answer = client.chat.completions.create(model="{name}", messages=[{{"role": "user", "content": "{QUESTION}"}}])
  print(answer.choices[0].message.content)

Ctrl-C stops it."""
    )
    host = config.router.host
    if is_open and host is not None and not _is_loopback(host):
        phases.say(f"note: whoever reaches {host} may use this server; --api-key KEY asks for a key")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
