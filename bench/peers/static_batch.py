"""transformers' generate behind HTTP, in static batches: what waits when it is free becomes one batch, and the next has
to wait until the longest answer of that one is done. Runs in the environment of the peer, without ours.

    python static_batch.py MODEL --port N [--threads N] [--batch-size N]
"""

import argparse
import json
import queue
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

GATHER_S = 0.005
"""A batch begins when nobody came for so long: clients whose answers end together ask again together."""


@dataclass
class Job:
    """pieces: the text of each token as it comes, then None."""

    prompt: str
    max_tokens: int
    num_prompt_tokens: int = 0
    num_sent_chars: int = 0
    pieces: queue.Queue[str | None] = field(default_factory=queue.Queue)


class Emit(StoppingCriteria):
    """Hands out what each step added; nothing is ever stopped here."""

    def __init__(self, jobs, tokenizer, prompt_len):
        self._jobs, self._tokenizer, self._prompt_len = jobs, tokenizer, prompt_len

    def __call__(self, input_ids, scores, **kwargs):
        num_tokens = input_ids.shape[1] - self._prompt_len
        for row, job in enumerate(self._jobs):
            if num_tokens <= job.max_tokens:
                text = self._tokenizer.decode(input_ids[row, self._prompt_len :])
                job.pieces.put(text[job.num_sent_chars :])
                job.num_sent_chars = len(text)
            if num_tokens == job.max_tokens:
                job.pieces.put(None)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Batches:
    """One thread computes; the others wait for their job's pieces."""

    def __init__(self, model_path, batch_size):
        self._tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()
        self._batch_size = batch_size
        self.waiting: queue.Queue[Job] = queue.Queue()

    def run_for_ever(self):
        while True:
            jobs = [self.waiting.get()]
            while len(jobs) < self._batch_size:
                try:
                    jobs.append(self.waiting.get(timeout=GATHER_S))
                except queue.Empty:
                    break
            self._run(jobs)

    def _run(self, jobs):
        encoded = self._tokenizer([job.prompt for job in jobs], return_tensors="pt", padding=True)
        for job, mask in zip(jobs, encoded["attention_mask"], strict=True):
            job.num_prompt_tokens = int(mask.sum())
        longest = max(job.max_tokens for job in jobs)
        emit = Emit(jobs, self._tokenizer, encoded["input_ids"].shape[1])
        with torch.inference_mode():
            self._model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=longest,
                min_new_tokens=longest,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([emit]),
            )


def make_handler(batches):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            job = Job(body["prompt"], int(body["max_tokens"]))
            batches.waiting.put(job)
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            while (piece := job.pieces.get()) is not None:
                self._send({"choices": [{"index": 0, "text": piece, "finish_reason": None}]})
            self._send({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
            usage = {"prompt_tokens": job.num_prompt_tokens, "completion_tokens": job.max_tokens}
            self._send({"choices": [], "usage": usage})
            self.wfile.write(b"0\r\n\r\n")

        def _send(self, event):
            frame = b"data: " + json.dumps(event).encode() + b"\n\n"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(frame), frame))

        def log_message(self, *_):
            """Quiet: a line for each request would cost time."""

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batches = Batches(options.model, options.batch_size)
    threading.Thread(target=batches.run_for_ever, daemon=True).start()
    Server(("127.0.0.1", options.port), make_handler(batches)).serve_forever()


if __name__ == "__main__":
    main()
