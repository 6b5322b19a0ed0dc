from kvasir_cluster.health import Question, judge_silence, should_ask


def test_first_question_is_asked_at_once():
    assert should_ask(None, 0.0, period_s=1.0)


def test_next_question_waits_for_the_period():
    answered = Question(asked_at_s=10.0, is_open=False)
    assert not should_ask(answered, 10.9, period_s=1.0)
    assert should_ask(answered, 11.0, period_s=1.0)


def test_no_second_question_while_one_is_open():
    assert not should_ask(Question(asked_at_s=0.0, is_open=True), 100.0, period_s=1.0)


def test_silence_up_to_the_deadline_is_no_failure():
    assert judge_silence(Question(asked_at_s=0.0, is_open=True), 14.9, deadline_s=15.0) is None


def test_silence_beyond_the_deadline_is_taken_for_hung():
    assert judge_silence(Question(asked_at_s=0.0, is_open=True), 15.0, deadline_s=15.0) == "hung: no answer for 15.0 s"


def test_an_answered_question_never_ages():
    assert judge_silence(Question(asked_at_s=0.0, is_open=False), 1e9, deadline_s=15.0) is None
