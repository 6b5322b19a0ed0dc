"""Why an answer can't go on."""

import math
from dataclasses import dataclass

from kvasir_protocol.structured import FIELD
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.sequence import Sequence

_TOO_COMPLEX = f"{FIELD}: the form became too complex to follow in the middle of the answer; make it simpler"
_NO_NUMBERS = "the model's logits for the next token are not numbers; its weights or this replica may be damaged"


@dataclass(frozen=True, slots=True)
class AnswerFailure:
    """For the person who asked. field: the part of the request to change, if the error is the caller's."""

    text: str
    field: str | None = None


def failure_of(sequence: Sequence, token: SampledToken) -> AnswerFailure | None:
    """Why the sequence can't go on by this token; None if it can, and then its grammar has accepted the token."""
    if not math.isfinite(token.logit):
        fields = _restricting_fields(sequence)
        if math.isnan(token.logit) or token.logit > 0 or not fields:
            return AnswerFailure(_NO_NUMBERS)
        return AnswerFailure(
            f"{' and '.join(fields)} together leave no token that could come next; drop or widen one of them", fields[0]
        )
    if sequence.grammar is not None and not sequence.grammar.accept_next(token.token_id):
        return AnswerFailure(_TOO_COMPLEX, FIELD)
    return None


def _restricting_fields(sequence: Sequence) -> list[str]:
    """What may have forbidden tokens; a grammar alone always leaves one."""
    sampling = sequence.request.sampling
    others = {
        "allowed_token_ids": bool(sampling.allowed_token_ids),
        "bad_words": bool(sampling.bad_word_token_ids),
        "min_tokens": sequence.num_generated < sampling.min_tokens,
    }
    named = [name for name, is_used in others.items() if is_used]
    form = sampling.structured_outputs
    return [form.field, *named] if form is not None and named else named
