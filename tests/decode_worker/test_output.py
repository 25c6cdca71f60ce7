"""What a step leaves to be published: each token once, at its index, and who has ended does not go on."""

from broker.choice import Taken
from broker.intake import Claim
from broker.job_queue import QueueEntry
from decode_worker.output import take_over
from decode_worker.running import Running
from engine.continuation import sequence_of
from engine.sampler import Sampled
from messages.job import DecodeJob
from messages.kv_transfer import KVHandle
from messages.request import GenerationRequest, SamplingParams
from messages.token_event import FinishReason, TokenEvent
from messages.worker_status import Role

EOS = 7
PROMPT = [5, 6]


def running(request_id: str, max_new_tokens: int = 10) -> Running:
    request = GenerationRequest(request_id, PROMPT, SamplingParams(seed=1, max_new_tokens=max_new_tokens), api_id="api")
    handle = KVHandle("t", "w", "p", 1, 0, 1, "layout", len(PROMPT), [0])
    entry = QueueEntry(Role.DECODE, b"1-1", DecodeJob(request_id, 0, 2, handle), 1)
    published = [TokenEvent(9, -1.0)]
    return Running(Claim(entry, Taken(request, 0, 3, published)), sequence_of(request, 0, published))


def test_who_goes_on_has_its_token_and_the_stream_will_have_it_at_its_index() -> None:
    one = running("a")
    for step, token_id in enumerate((11, 12)):
        (output,) = take_over([one], [Sampled(token_id, -0.5)], {EOS})
        assert not output.is_last
        assert (output.append.index, output.append.epoch, output.append.event.token_id) == (step + 1, 3, token_id)
    assert one.sequence.token_ids == [*PROMPT, 9, 11, 12]


def test_who_ends_is_told_from_who_goes_on() -> None:
    batch = [running("eos"), running("length", max_new_tokens=2), running("error"), running("goes_on")]
    sampled = [Sampled(EOS, -0.5), Sampled(11, -0.5), Sampled(-1, 0.0, "not finite"), Sampled(12, -0.5)]
    outputs = take_over(batch, sampled, {EOS})
    assert [output.append.event.finish_reason for output in outputs] == [
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.ERROR,
        None,
    ]
    assert [output.is_last for output in outputs] == [True, True, True, False]
    assert [len(one.sequence.token_ids) for one in batch] == [3, 3, 3, 4]
