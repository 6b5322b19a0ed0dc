from kvasir.bench.arrivals import Traffic
from kvasir.bench.client import Target
from kvasir.bench.drive import Outcome
from kvasir.bench.http_client import Origin
from kvasir.bench.metrics import Wanted
from kvasir.bench.records import Failure, Record
from kvasir.bench.serve import ServeBench, count_answers, make_warm_up, result_of
from kvasir.bench.text_source import CountedWords, PlainWords
from kvasir.bench.workloads import Conversation, Lengths, Turn, random_prompts


def one_more_than_words(text):
    """As a tokenizer does that puts a token in front."""
    return 1 + len(text.split())


def record(text="a b c", counted_by="chunks", failure=None):
    return Record(
        planned_s=0, queue_s=0, sent_s=0, ended_s=1, num_output_tokens=9,
        counted_by=counted_by, text=text, failure=failure,
    )  # fmt: skip


def counted(record, source):
    return count_answers(Outcome(records=[record], duration_s=1.0), source).records[0]


def test_answers_without_usage_are_counted_afterwards_if_somebody_can():
    source = CountedWords(one_more_than_words)
    assert (counted(record(), source).num_output_tokens, counted(record(), source).counted_by) == (3, "tokenizer")
    assert counted(record(), PlainWords()) == record()


def test_what_the_server_counted_stands():
    source = CountedWords(one_more_than_words)
    assert counted(record(counted_by="usage"), source) == record(counted_by="usage")
    failed = record(failure=Failure("timeout"))
    assert counted(failed, source) == failed


def test_warm_up_is_as_long_as_the_load_and_has_nothing_of_it():
    load = [Conversation((Turn("x y", 12, 5),))]
    warm_up = make_warm_up(load, 3, CountedWords(one_more_than_words))
    assert [(item.turns[0].num_tokens, item.turns[0].max_tokens) for item in warm_up] == [(12, 5)] * 3
    (guessed,) = make_warm_up([Conversation((Turn("x y z", None, 5),))], 1, PlainWords())
    assert len(guessed.turns[0].text.split()) == 3


def test_warm_up_is_that_of_no_load():
    source = CountedWords(one_more_than_words)
    lengths = Lengths(input_len=12, output_len=5)
    for seed in (0, 1, 2, 1001):
        load = random_prompts(4, lengths, source, seed)
        assert not set(load) & set(make_warm_up(load, 4, source))


def bench(*conversations, **options):
    target = Target(origin=Origin(host="h", port=1), model="m")
    return ServeBench(target=target, conversations=conversations, **options)


def test_a_trace_keeps_its_own_times_and_others_take_the_rate():
    turns = (Turn("q", 1, 1),)
    traced = bench(Conversation(turns, 0.5), Conversation(turns, 2.0), traffic=Traffic(request_rate=1))
    assert traced.plan().offsets_s == [0.5, 2.0]
    rated = bench(Conversation(turns), Conversation(turns), traffic=Traffic(request_rate=4))
    assert rated.plan().offsets_s[-1] == 0.5


def test_the_client_tells_its_share_of_a_core():
    result = result_of(Outcome(records=[], duration_s=2.0, client_cpu_s=0.5), Wanted())
    assert result["client_cpu_share"] == 0.25


def test_a_stopped_run_says_what_it_left():
    result = result_of(Outcome(records=[], duration_s=1.0, num_aborted=2, num_unsent=3), Wanted())
    assert (result["interrupted"], result["aborted"], result["not_sent"]) == (True, 2, 3)
